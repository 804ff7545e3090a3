"""Which files of a folder are the source, what is named because it is not read, and advice that fits the source."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from tiny import png_image

from dualfuse.data.shards.shards import Shards
from dualfuse.data.split import is_split_name, split_in_name, split_name
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.prepare.registry import recognize

ONE = PrepareOptions(num_workers=1)


def put(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def names(out: Path) -> dict[str, list[object]]:
    return {tar.stem[:-6]: [sample.meta["name"] for sample in Shards.open(tar)] for tar in sorted(out.glob("*.tar"))}


@pytest.mark.parametrize("source", ["folder", "table", "tar"])
def test_out_inside_the_source_is_neither_recognized_nor_read(tmp_path: Path, source: str) -> None:
    put(tmp_path, {"a.png": png_image(0)})
    if source == "table":
        put(tmp_path, {"metadata.csv": "file_name,text\na.png,a cat\n"})
    else:
        put(tmp_path, {"a.txt": "a cat"})
    if source == "tar":
        prepare(tmp_path, tmp_path / "set/train", ONE)
    path = tmp_path / "set" if source == "tar" else tmp_path
    first = prepare(path, path / "out", ONE).tally
    assert prepare(path, path / "out", ONE).tally == first and first.samples == 1
    with pytest.raises(ValueError, match="same folder"):
        prepare(path, path, ONE)


def test_metadata_tables_in_split_folders_are_read_together(tmp_path: Path) -> None:
    put(tmp_path, {"train/metadata.csv": "file_name,text\na.png,a cat\n", "train/a.png": png_image(0)})
    put(tmp_path, {"test/metadata.jsonl": '{"file_name": "a.png", "text": "a dog"}', "test/a.png": png_image(1)})
    prepare(tmp_path, tmp_path / "out", ONE)
    assert names(tmp_path / "out") == {"test": ["test/a.png"], "train": ["train/a.png"]}


def test_the_folders_of_image_names_are_splits_if_all_are(tmp_path: Path) -> None:
    images = {"train/a.png": png_image(0), "test/b.png": png_image(1)}
    put(tmp_path / "a", {"metadata.csv": "file_name,text\ntrain/a.png,x\ntest/b.png,y\n", **images})
    prepare(tmp_path / "a", tmp_path / "out", ONE)
    assert names(tmp_path / "out") == {"test": ["test/b.png"], "train": ["train/a.png"]}


def test_parquet_files_in_split_folders_have_these_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        table = pyarrow.table({"image": [png_image(len(split))], "text": ["x"]})
        pyarrow.parquet.write_table(table, tmp_path / split / "0000.parquet")
    prepare(tmp_path, tmp_path / "out", ONE)
    assert set(names(tmp_path / "out")) == {"train", "test"}


def test_a_table_without_images_beside_images_is_not_the_source(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"url": ["http://x/1.png"]}), tmp_path / "0.parquet")
    put(tmp_path, {"0/1.png": png_image(0), "0/1.json": '{"caption": "a cat"}', "0_stats.json": "{}"})
    assert recognize(tmp_path) == ("folder", tmp_path)
    tally = prepare(tmp_path, tmp_path / "out", ONE).tally
    assert tally.samples == 1 and "not read: 0.parquet, 0_stats.json" in tally.remarks[0]


def test_tables_and_texts_that_are_not_read_are_named(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": png_image(0), "b.png": png_image(1), "train.csv": "image,caption\na.png,x\n"})
    put(tmp_path, {"val.csv": "image,caption\nb.png,y\n"})
    with pytest.raises(
        ValueError, match=r"\.txt files beside the images.*--images-only.*not read: train\.csv, val\.csv"
    ):
        prepare(tmp_path, tmp_path / "out", ONE)
    put(tmp_path, {"a.txt": "x", "gone.txt": "z"})
    remarks = "\n".join(prepare(tmp_path, tmp_path / "out", ONE).tally.remarks)
    assert "1 text files are not read, because no image has the same name: gone.txt" in remarks


def test_split_folders_beside_others_are_named_in_a_remark(tmp_path: Path) -> None:
    for top in ("train", "test", "more"):
        put(tmp_path, {f"{top}/a.png": png_image(0), f"{top}/a.txt": "x"})
    (remark,) = prepare(tmp_path, tmp_path / "out", ONE).tally.remarks
    assert remark == "not splits, because there are also images in more: test, train"


COCO = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "x"}]}


@pytest.mark.parametrize(
    ("files", "flags"),
    [
        ({"a.png": b"x"}, ()),
        ({"metadata.csv": "file_name,other\na.png,x\n", "a.png": b"x"}, ("--text",)),
        ({"metadata.csv": "file_name,text\na.png,x\n"}, ("--images",)),
        ({"captions_x.json": json.dumps(COCO)}, ("--images",)),
        ({"images/a.png": b"x", "annotations/b.png": b"x"}, ()),
    ],
)  # fmt: skip
def test_advice_only_names_flags_that_the_source_accepts(
    tmp_path: Path, files: dict[str, bytes | str], flags: tuple[str, ...]
) -> None:
    put(tmp_path, {name: data if data != b"x" else png_image(0) for name, data in files.items()})
    with pytest.raises(ValueError, match="is usable") as error:
        prepare(tmp_path, tmp_path / "out", ONE)
    assert set(re.findall(r"--[a-z-]+", str(error.value))) - {"--images-only"} == set(flags)


def test_unreadable_folders_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {"a.png": png_image(0), "a.txt": "x", "secret/b.png": png_image(1), "secret/b.txt": "y"})
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    tally = prepare(tmp_path, tmp_path / "out", ONE).tally
    assert (tally.samples, tally.examples) == (1, {"unreadable folder: Permission denied": ["secret"]})


def test_loops_of_links_are_read_once(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": png_image(0), "a.txt": "x"})
    (tmp_path / "self").symlink_to(".")
    assert prepare(tmp_path, tmp_path / "out", ONE).tally.consumed == 1


@pytest.mark.parametrize("ids", [("1", 1), (1, "1"), (1.0, 1), (7, 7.0)])
def test_coco_ids_of_two_types_are_equal(tmp_path: Path, ids: tuple[object, object]) -> None:
    content = {
        "images": [{"id": ids[0], "file_name": "a.png"}],
        "annotations": [{"image_id": ids[1], "caption": "a cat"}],
    }
    source = put(tmp_path, {"a.png": png_image(0), "captions_x.json": json.dumps(content)}) / "captions_x.json"
    assert prepare(source, tmp_path / "out", ONE).tally.captions == {"train": 1}


def test_coco_entries_that_are_incomplete_or_left_over_are_counted(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2}, 3],
        "annotations": [{"image_id": 1}, {"image_id": 1, "caption": "x"}, {"image_id": 1, "caption": None}]
        + [{"image_id": 8, "caption": "lost"}] * 2,
    }
    source = put(tmp_path, {"a.png": png_image(0), "captions_x.json": json.dumps(content)}) / "captions_x.json"
    tally = prepare(source, tmp_path / "out", ONE).tally
    assert tally.skipped == {"incomplete entry": 4, "caption of an image that is not in the file": 2}
    assert tally.captions == {"train": 1}


def test_karpathy_entries_that_are_incomplete_are_counted(tmp_path: Path) -> None:
    good = {"filename": "a.png", "split": "train", "sentences": [{"raw": "x"}, {"tokens": []}]}
    source = tmp_path / "d.json"
    put(tmp_path, {"a.png": png_image(0), "d.json": json.dumps({"images": [{"filename": "b.png"}, good, None]})})
    tally = prepare(source, tmp_path / "out", ONE).tally
    assert (tally.captions, tally.skipped) == ({"train": 1}, {"incomplete entry": 3})


@pytest.mark.parametrize(("name", "split"), [("训练", "训练"), ("परीक्षण", "परीक्षण"), ("Prüfung 2", "prüfung_2")])
def test_split_names_keep_the_letters_of_any_script(name: str, split: str) -> None:
    assert split_name(name) == split


def test_split_names_without_letters_are_refused(tmp_path: Path) -> None:
    for name in ("—", "🚂", "?!"):
        with pytest.raises(ValueError, match="letters or digits"):
            split_name(name)
    put(tmp_path, {"a.png": png_image(0), "t.csv": "image,caption,split\na.png,x,🚂\n"})
    with pytest.raises(ValueError, match="🚂"):
        prepare(tmp_path / "t.csv", tmp_path / "out", ONE)


def test_splits_of_tables_may_be_numbers_and_empty_cells_are_noted(tmp_path: Path) -> None:
    put(tmp_path, {f"{n}.png": png_image(n) for n in range(3)})
    lines = ({"image": f"{n}.png", "text": "x", "split": split} for n, split in enumerate((0, "训练", None)))
    put(tmp_path, {"t.jsonl": "\n".join(map(json.dumps, lines))})
    tally = prepare(tmp_path / "t.jsonl", tmp_path / "out", ONE).tally
    assert names(tmp_path / "out") == {"0": ["0.png"], "训练": ["1.png"], "train": ["2.png"]}
    assert tally.noted_examples == {"its split is empty": ["2.png"]}


def test_folders_and_files_called_like_splits_in_other_scripts_are_splits(tmp_path: Path) -> None:
    for top in ("训练", "测试"):
        put(tmp_path, {f"{top}/a.png": png_image(0), f"{top}/a.txt": "x"})
    prepare(tmp_path, tmp_path / "out", ONE)
    assert set(names(tmp_path / "out")) == {"训练", "测试"}
    assert split_in_name("captions_тест") == "тест" and is_split_name("훈련") and not is_split_name("猫")
