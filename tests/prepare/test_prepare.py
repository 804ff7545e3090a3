"""Data sets of all formats become shards, bitwise the same after any interruption."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from rich.console import Console

from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.data.split import split_name
from dualfuse.prepare import output_folder as prepared_folder
from dualfuse.prepare.checks import PreparedItem, SkippedItem
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.prepare.registry import recognize
from dualfuse.prepare.sources.source import Item

ONE = PrepareOptions(num_workers=1)


def encode(number: int, size: tuple[int, int] = (20, 12), kind: str = "JPEG") -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def samples(out: Path, split: str = "train") -> dict[str, Sample]:
    return {str(sample.meta["name"]): sample for sample in Shards.open(out / f"{split}-*.tar")}


def texts(out: Path, split: str = "train") -> dict[str, tuple[str, ...]]:
    return {name: sample.texts for name, sample in samples(out, split).items()}


def skipped(out: Path) -> dict[str, str]:
    lines = (out / "skipped.jsonl").read_text().splitlines()
    return {row["name"]: row["reason"] for row in map(json.loads, lines)}


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if not path.name.endswith(".npz")}


def images(folder: Path, count: int = 3, captions: bool = True) -> Path:
    for number in range(count):
        put(folder / f"{number:02d}.jpg", encode(number))
        if captions:
            put(folder / f"{number:02d}.txt", f"caption {number}\n\n second  line \n")
    return folder


def test_folder_of_images_with_texts(tmp_path: Path) -> None:
    source, out = images(tmp_path / "mine"), tmp_path / "out"
    summary = prepare(source, out, ONE)
    assert texts(out)["01.jpg"] == ("caption 1", "second line")
    assert samples(out)["02.jpg"].image == encode(2)
    assert samples(out)["02.jpg"].meta == {"name": "02.jpg", "width": 20, "height": 12}
    assert (summary.tally.samples, summary.tally.captions, skipped(out)) == (3, {"train": 6}, {})


def test_sub_folders_are_splits_only_if_all_of_them_are(tmp_path: Path) -> None:
    for folder in ("train", "validation", "test"):
        images(tmp_path / "split" / folder, 2)
    prepare(tmp_path / "split", tmp_path / "a", ONE)
    assert {p.name for p in (tmp_path / "a").glob("*.tar")} == {"train-00000.tar", "val-00000.tar", "test-00000.tar"}
    for folder in ("test", "bus"):
        images(tmp_path / "vehicles" / folder, 2)
    prepare(tmp_path / "vehicles", tmp_path / "b", ONE)
    assert list(texts(tmp_path / "b")) == ["bus/00.jpg", "bus/01.jpg", "test/00.jpg", "test/01.jpg"]


def test_skipped_items_are_counted_and_listed(tmp_path: Path) -> None:
    source = images(tmp_path / "mine")
    put(source / "bad.jpg", b"no image"), put(source / "bad.txt", "text")
    put(source / "cut.jpg", encode(5, (64, 64))[:-400]), put(source / "cut.txt", "text")
    put(source / "empty.png", b""), put(source / "empty.txt", "text")
    put(source / "mute.jpg", encode(6)), put(source / "blank.jpg", encode(7)), put(source / "blank.txt", " \n")
    big = io.BytesIO()
    Image.new("1", (30_000, 3_000)).save(big, "PNG")
    put(source / "big.png", big.getvalue()), put(source / "big.txt", "text")
    summary = prepare(source, tmp_path / "out", ONE)
    bad = "unreadable image"
    assert skipped(tmp_path / "out") == {
        "bad.jpg": bad, "big.png": "image too large", "blank.jpg": "no caption", "cut.jpg": bad,
        "empty.png": bad, "mute.jpg": "no caption",
    }  # fmt: skip
    assert summary.tally.skipped == {bad: 3, "image too large": 1, "no caption": 2}
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["skipped"] == summary.tally.skipped
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(summary)
    assert "3 skipped: unreadable image, such as bad.jpg, cut.jpg, empty.png" in console.export_text()


def test_images_only_keeps_images_without_captions(tmp_path: Path) -> None:
    source = images(tmp_path / "mine", captions=False)
    with pytest.raises(ValueError, match=r"3 items is usable \(no caption: 3\).*--images-only"):
        prepare(source, tmp_path / "out", ONE)
    prepare(source, tmp_path / "out", replace(ONE, images_only=True))
    assert texts(tmp_path / "out") == {"00.jpg": (), "01.jpg": (), "02.jpg": ()}


def test_other_formats_become_png_and_longest_side_resizes(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    put(source / "a.bmp", encode(1, (30, 10), "BMP")), put(source / "a.txt", "a")
    put(source / "b.png", encode(2, (30, 10), "PNG")), put(source / "b.txt", "b")
    prepare(source, tmp_path / "same", ONE)
    same = samples(tmp_path / "same")
    assert same["b.png"].image == encode(2, (30, 10), "PNG")
    pixels = np.asarray(Image.open(io.BytesIO(same["a.bmp"].image)))
    assert np.array_equal(pixels, np.asarray(Image.open(source / "a.bmp")))
    summary = prepare(source, tmp_path / "small", replace(ONE, longest_side=15))
    small = {name: Image.open(io.BytesIO(sample.image)) for name, sample in samples(tmp_path / "small").items()}
    assert {(image.format, image.size) for image in small.values()} == {("JPEG", (15, 5))}
    assert summary.tally.changed == {"resized, as JPEG": 2}


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


@pytest.mark.parametrize(
    ("name", "delimiter"), [("t.csv", ","), ("t.tsv", "\t"), ("t.csv", "|"), ("captions.txt", ",")]
)
def test_separated_tables_with_several_rows_per_image(tmp_path: Path, name: str, delimiter: str) -> None:
    source = images(tmp_path / "mine", captions=False)
    rows = [("00.jpg", 'a, "b"', "train"), ("01.jpg", "c", "Validation"), ("00.jpg", "d", "train"), ("9.jpg", "e", "")]
    path = table(source / name, ("image", "Caption", "split"), rows, delimiter)
    prepare(path, tmp_path / "out", ONE)
    assert texts(tmp_path / "out") == {"00.jpg": ('a, "b"', "d")}
    assert texts(tmp_path / "out", "val") == {"01.jpg": ("c",)}
    assert skipped(tmp_path / "out") == {"9.jpg": "missing image"}
    assert recognize(source) == ("table", path)  # the folder means the one table in it


def test_jsonl_with_numbered_captions_other_folder_and_bad_lines(tmp_path: Path) -> None:
    images(tmp_path / "elsewhere", captions=False)
    rows = [{"file_name": "00.jpg", "caption_0": "a", "caption_1": "b", "id": 7}, {"file_name": "", "caption_0": "x"}]
    source = put(tmp_path / "t.jsonl", "\n".join([*map(json.dumps, rows), "{broken", "[1]"]))
    prepare(source, tmp_path / "out", replace(ONE, images=tmp_path / "elsewhere"))
    sample = samples(tmp_path / "out")["00.jpg"]
    assert (sample.texts, sample.meta["id"]) == (("a", "b"), 7)
    bad = "unreadable row"
    assert skipped(tmp_path / "out") == {"t.jsonl:2": "missing image", "t.jsonl:3": bad, "t.jsonl:4": bad}


def test_json_list_and_columns_by_name(tmp_path: Path) -> None:
    images(tmp_path, captions=False)
    source = put(tmp_path / "t.json", json.dumps([{"photo": "00.jpg", "en": ["a", "b"], "de": "c", "text": "no"}]))
    prepare(source, tmp_path / "out", replace(ONE, image_column="photo", text_columns=("en", "de")))
    assert texts(tmp_path / "out") == {"00.jpg": ("a", "b", "c")}
    with pytest.raises(ValueError, match="no column 'fr'; its columns are photo, en, de, text"):
        prepare(source, tmp_path / "b", replace(ONE, image_column="photo", text_columns=("fr",)))
    with pytest.raises(ValueError, match=r"no column of .*photo, en, de, text; give its name with --image"):
        prepare(source, tmp_path / "c", ONE)


@pytest.mark.parametrize("row", [("url", "http://a.b/c.jpg"), ("image", "https://a.b/c.jpg")])
def test_urls_are_refused_with_a_hint_to_img2dataset(tmp_path: Path, row: tuple[str, str]) -> None:
    source = table(tmp_path / "t.csv", (row[0], "caption"), [(row[1], "x")])
    with pytest.raises(ValueError, match="img2dataset"):
        prepare(source, tmp_path / "out", ONE)


def test_parquet_with_names_or_image_bytes(tmp_path: Path) -> None:
    images(tmp_path, captions=False)
    named = pyarrow.table({"image": ["00.jpg", "00.jpg"], "caption": ["a", "b"]})
    pyarrow.parquet.write_table(named, tmp_path / "t.parquet")
    prepare(tmp_path / "t.parquet", tmp_path / "named", ONE)
    assert texts(tmp_path / "named") == {"00.jpg": ("a", "b")}
    hub = pyarrow.table({"image": [{"bytes": encode(1), "path": "x.jpg"}], "text": ["c"]})
    put(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", b"")
    pyarrow.parquet.write_table(hub, tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    prepare(tmp_path / "hub", tmp_path / "inside", ONE)
    ((name, sample),) = samples(tmp_path / "inside", "test").items()
    assert (name, sample.image, sample.texts) == ("test-00000-of-00001.parquet:1/x.jpg", encode(1), ("c",))
    crawl = pyarrow.table({"url": ["u", "v"], "jpg": [encode(1), None], "caption": ["c", "d"]})  # of img2dataset
    put(tmp_path / "crawl" / "00000.parquet", b"")
    pyarrow.parquet.write_table(crawl, tmp_path / "crawl" / "00000.parquet")
    prepare(tmp_path / "crawl", tmp_path / "crawled", ONE)
    assert texts(tmp_path / "crawled") == {"00000.parquet:1": ("c",)}
    assert skipped(tmp_path / "crawled") == {"00000.parquet:2": "missing image"}


def test_coco_captions(tmp_path: Path) -> None:
    for split, number in (("train2017", 1), ("val2017", 2)):
        put(tmp_path / split / f"{number:012d}.jpg", encode(number))
        content = {
            "images": [{"id": number, "file_name": f"{number:012d}.jpg"}],
            "annotations": [{"image_id": number, "id": n, "caption": f"c{number}{n}\n"} for n in range(5)],
        }
        put(tmp_path / "annotations" / f"captions_{split}.json", json.dumps(content))
    prepare(tmp_path / "annotations" / "captions_train2017.json", tmp_path / "one", ONE)
    assert texts(tmp_path / "one") == {"train2017/000000000001.jpg": ("c10", "c11", "c12", "c13", "c14")}
    prepare(tmp_path / "annotations", tmp_path / "both", ONE)
    assert texts(tmp_path / "both", "val") == {"val2017/000000000002.jpg": ("c20", "c21", "c22", "c23", "c24")}
    prepare(tmp_path / "annotations", tmp_path / "named", replace(ONE, images=tmp_path / "val2017"))
    assert set(skipped(tmp_path / "named")) == {"train2017/000000000001.jpg"}


@pytest.mark.parametrize("has_folders", [True, False])
def test_karpathy_splits(tmp_path: Path, has_folders: bool) -> None:
    entries = []
    for number, split in enumerate(("train", "restval", "val", "test")):
        put(tmp_path / "images" / ("val2014" if has_folders else "") / f"{number}.jpg", encode(number))
        sentences = [{"raw": f"{split} {n}.", "tokens": [split]} for n in range(5)]
        entry = {"filename": f"{number}.jpg", "split": split, "sentences": sentences, "imgid": number}
        entries.append(entry | ({"filepath": "val2014"} if has_folders else {}))
    source = put(tmp_path / "dataset_coco.json", json.dumps({"images": entries, "dataset": "coco"}))
    assert recognize(source) == ("karpathy", source)
    prepare(source, tmp_path / "out", replace(ONE, images=tmp_path / "images"))
    counts = {
        split: [len(text) for text in texts(tmp_path / "out", split).values()] for split in ("train", "val", "test")
    }
    assert counts == {"train": [5, 5], "val": [5], "test": [5]}
    assert [sample.meta["split"] for sample in samples(tmp_path / "out").values()] == ["train", "restval"]


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_tars_of_img2dataset(tmp_path: Path) -> None:
    good = {"000000.jpg": encode(1), "000000.txt": b"a", "000000.json": b'{"url": "http://a", "caption": "a"}'}
    write_tar(tmp_path / "crawl" / "00000.tar", good | {"000001.png": encode(2, kind="PNG"), "000002.txt": b"alone"})
    put(tmp_path / "crawl" / "00000.parquet", b"beside"), put(tmp_path / "crawl" / "00000_stats.json", "{}")
    for number, size in enumerate((512 + 700, 1024 + 512 * 3 + 100), start=1):  # downloads broke off
        whole = write_tar(tmp_path / "crawl" / f"{number:05d}.tar", {"1.jpg": encode(3), "1.txt": b"c"}).read_bytes()
        put(tmp_path / "crawl" / f"{number:05d}.tar", whole[:size])
    prepare(tmp_path / "crawl", tmp_path / "out", ONE)
    sample = samples(tmp_path / "out")["00000/000000"]
    assert (sample.image, sample.texts, sample.meta["url"]) == (encode(1), ("a",), "http://a")
    reasons = skipped(tmp_path / "out")
    assert reasons.pop("00001").startswith("unreadable tar") and reasons.pop("00002").startswith("unreadable tar")
    assert reasons == {"00000/000001": "no caption", "00000/000002": "missing image"}


def test_prepared_shards_can_be_prepared_again(tmp_path: Path) -> None:
    prepare(images(tmp_path / "mine" / "val").parent, tmp_path / "once", ONE)
    prepare(tmp_path / "once", tmp_path / "twice", ONE)
    once, twice = Shards.open(tmp_path / "once"), Shards.open(tmp_path / "twice" / "val-*.tar")
    assert [(s.image, s.texts) for s in once] == [(s.image, s.texts) for s in twice]


def test_split_by_content_keeps_copies_together(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    for number in range(200):
        for copy in "ab":
            put(source / f"{number}{copy}.jpg", encode(number, (2, 2))), put(source / f"{number}{copy}.txt", "x")
    options = replace(ONE, split="val=0.2,test=0.1")
    prepare(source, tmp_path / "out", options)
    names = {split: set(texts(tmp_path / "out", split)) for split in ("train", "val", "test")}
    assert {split: {name[:-5] + "a.jpg" for name in found} | {name[:-5] + "b.jpg" for name in found}
            for split, found in names.items()} == names  # fmt: skip
    assert abs(len(names["val"]) / 400 - 0.2) < 0.06 and abs(len(names["test"]) / 400 - 0.1) < 0.06
    (source / "0a.jpg").unlink()
    prepare(source, tmp_path / "less", options)
    assert all(set(texts(tmp_path / "less", split)) == found - {"0a.jpg"} for split, found in names.items())


@pytest.mark.parametrize("split", ["val", "val=2", "val=0.5,test=0.5", "train=0.1", "val=0.1,val=0.1", "val=0.0"])
def test_invalid_shares_are_refused(tmp_path: Path, split: str) -> None:
    with pytest.raises(ValueError, match="split"):
        prepare(images(tmp_path / "mine"), tmp_path / "out", replace(ONE, split=split))


def test_options_of_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are for tables"):
        prepare(images(tmp_path / "mine"), tmp_path / "out", replace(ONE, text_columns=("a",)))
    with pytest.raises(ValueError, match="has splits already"):
        prepare(images(tmp_path / "split" / "test").parent, tmp_path / "out", replace(ONE, split="val=0.5"))


def test_unknown_formats_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone does not exist"):
        recognize(tmp_path / "gone")
    put(tmp_path / "odd" / "a.doc", "x")
    with pytest.raises(ValueError, match=r"contains 1 \.doc(.|\n)*\.jsonl(.|\n)*Karpathy(.|\n)*tar shards"):
        recognize(tmp_path / "odd")
    with pytest.raises(ValueError, match="an object with licenses, info"):
        recognize(put(tmp_path / "instances.json", '{"licenses": [], "info": {}}'))


def test_a_wrong_image_folder_is_detected_early(tmp_path: Path) -> None:
    rows = [(f"{number}.jpg", "text") for number in range(500)]
    with pytest.raises(ValueError, match=r"first 100 items.*--images.*0\.jpg"):
        prepare(table(tmp_path / "t.csv", ("image", "text"), rows), tmp_path / "out", ONE)


STOPPED = replace(ONE, split="val=0.3", shard_samples=3)


def many(folder: Path) -> Path:
    images(folder, 16)
    for number in (2, 9, 15):
        put(folder / f"{number:02d}.jpg", b"broken")
    return folder


def test_resume_is_bitwise_after_a_kill_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out, moments = many(tmp_path / "mine"), tmp_path / "whole", []

    def freeze(*_: object) -> None:  # what a process that is killed just now leaves behind
        moments.append(tmp_path / f"moment{len(moments)}")
        shutil.copytree(out, moments[-1])

    take, save = prepared_folder.PreparedFolder.add, prepared_folder.save_tally
    with monkeypatch.context() as patch:
        patch.setattr(prepared_folder, "SAVE_EVERY", 4)
        patch.setattr(prepared_folder, "save_tally", lambda *args: (freeze(), save(*args)))
        patch.setattr(prepared_folder.PreparedFolder, "add", lambda *args: (freeze(), take(*args)))
        prepare(source, out, STOPPED)
    assert len(moments) > 20
    for moment in moments:
        prepare(source, moment, STOPPED)
        assert shards(moment) == shards(out)


def test_resume_after_keyboard_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out, take = many(tmp_path / "mine"), tmp_path / "out", prepared_folder.PreparedFolder.add

    def interrupt(self: prepared_folder.PreparedFolder, item: Item, outcome: PreparedItem | SkippedItem) -> None:
        take(self, item, outcome)
        if self.tally.consumed == 11:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepared_folder, "SAVE_EVERY", 4)
        patch.setattr(prepared_folder.PreparedFolder, "add", interrupt)
        prepare(source, out, STOPPED)
    assert json.loads((out / "progress.json").read_text())["consumed"] == 8
    put(source / "09.jpg", encode(9)), put(source / "15.jpg", encode(15))  # what was left out meanwhile is mended
    prepare(source, out, STOPPED)
    assert skipped(out) == {"02.jpg": "unreadable image"}
    prepare(source, tmp_path / "whole", STOPPED)
    assert shards(out) == shards(tmp_path / "whole")


def test_rerunning_a_complete_conversion_writes_nothing(tmp_path: Path) -> None:
    source, out = many(tmp_path / "mine"), tmp_path / "out"
    first = prepare(source, out, STOPPED)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    moved = source.rename(tmp_path / "moved").rename(source)
    assert prepare(moved, out, STOPPED).tally == first.tally
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == times


def test_output_does_not_depend_on_num_workers(tmp_path: Path) -> None:
    source = many(tmp_path / "mine")
    prepare(source, tmp_path / "one", STOPPED)
    prepare(source, tmp_path / "four", replace(STOPPED, num_workers=4))
    assert shards(tmp_path / "one") == shards(tmp_path / "four")


def test_other_sources_and_options_need_another_folder(tmp_path: Path) -> None:
    source, out = many(tmp_path / "mine"), tmp_path / "out"
    prepare(source, out, STOPPED)
    with pytest.raises(ValueError, match="longest_side was 0, is 9"):
        prepare(source, out, replace(STOPPED, longest_side=9))
    with pytest.raises(ValueError, match="source was 'mine', is 'other'"):
        prepare(images(tmp_path / "other"), out, STOPPED)
    write_tar(tmp_path / "foreign" / "a.tar", {})
    with pytest.raises(ValueError, match="did not write"):
        prepare(source, tmp_path / "foreign", STOPPED)


def test_missing_shards_are_refused(tmp_path: Path) -> None:
    source, out = many(tmp_path / "mine"), tmp_path / "out"
    prepare(source, out, STOPPED)
    (out / "train-00000.tar").unlink()
    with pytest.raises(ValueError, match=r"train-00000\.tar is missing"):
        prepare(source, out, STOPPED)


@pytest.mark.parametrize(
    ("said", "meant"),
    [("restval", "train"), ("Validation", "val"), ("train2017", "train"), ("dev", "val"), ("test-A", "test_a")],
)
def test_names_of_splits(said: str, meant: str) -> None:
    assert split_name(said) == meant
