"""Images are found by exact names, by similar names that can mean only one file, and never by another's name."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from tiny import png_image

from dualfuse.data.shards.shards import Shards
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.prepare.sources.image_finder import OTHER_NAME, ImageFinder

ONE = PrepareOptions(num_workers=1)


def files(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png_image(number))
    return folder


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("IMG_1.JPG", "IMG_1.jpg"),
        ("Cats/A.png", "cats/a.PNG"),
        ("a", "a.png"),
        ("sub/photo.v2", "sub/photo.v2.png"),
        ("a.png", "a.jpg"),
        ("my%20cat.png", "my cat.png"),
        ("my cat.png", "my%20cat.png"),
        (unicodedata.normalize("NFD", "café.png"), "café.png"),
        ("café.png", unicodedata.normalize("NFD", "café.png")),
        ("/a.png", "a.png"),
        ("/sub/a.png", "sub/a.png"),
        ("C:\\images\\A.PNG", "a.png"),
        ("sub\\A.png", "sub/a.png"),
        ("elsewhere/a.png", "a.png"),
        ("elsewhere/a.jpeg", "A.PNG"),
        ("x/../sub/A.png", "sub/a.png"),
    ],
)
def test_similar_names_that_can_mean_one_file_are_found_with_a_remark(tmp_path: Path, name: str, file: str) -> None:
    image = ImageFinder(files(tmp_path, file, "other.png"), names=lambda: [name, "other.png"])(name)
    assert (image.path, image.remark) == (tmp_path / file, OTHER_NAME)


@pytest.mark.parametrize(
    ("name", "file"), [("a.png", "a.png"), ("./a.png", "a.png"), ("sub\\a.png", "sub/a.png"), ("a\\b.png", "a\\b.png")]
)
def test_exact_names_have_no_remark(tmp_path: Path, name: str, file: str) -> None:
    image = ImageFinder(files(tmp_path, file))(name)
    assert (image.path, image.remark) == (tmp_path / file, "")


def test_ambiguous_names_are_not_found_and_the_candidates_are_named(tmp_path: Path) -> None:
    find = ImageFinder(files(tmp_path, "a.PNG", "A.png", "b.jpg", "b.gif", "x/c.png", "y/c.png"))
    assert find("a.png").remark == "a.png is not there, but A.png, a.PNG are"
    assert find("b.png").remark == "b.png is not there, but b.gif, b.jpg are"
    for missing in ("a.png", "b.png", "c.png", "none.png", "z/none.png"):
        with pytest.raises(FileNotFoundError):
            find(missing).read()


def test_files_that_another_row_names_are_not_taken(tmp_path: Path) -> None:
    files(tmp_path, "cats/1.png", "1.png", "b.jpg")
    names = ["cats/1.png", "dogs/1.png", "b.png", "b.jpg"]
    find = ImageFinder(tmp_path, names=lambda: names)
    assert find("dogs/1.png").remark == "dogs/1.png is not there, but 1.png is"
    assert find("b.png").remark == "b.png is not there, but b.jpg is"
    assert find("cats/1.png").path == tmp_path / "cats/1.png" and find("b.jpg").path == tmp_path / "b.jpg"


def rows(folder: Path, *pairs: tuple[str, str]) -> Path:
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps({"image": name, "caption": text}) + "\n" for name, text in pairs))
    return path


def texts(out: Path) -> dict[str, tuple[str, ...]]:
    return {str(sample.meta["name"]): sample.texts for sample in Shards.open(out / "train-*.tar")}


def test_rows_about_one_file_are_merged_whatever_their_spelling(tmp_path: Path) -> None:
    files(tmp_path, "a.png", "sub/b.png")
    spellings = ["a.png", "./a.png", "A.PNG", "a", "sub/../a.png", "%61.png", str(tmp_path / "a.png")]
    table = rows(tmp_path, *((name, f"text {n}") for n, name in enumerate(spellings)), ("sub/b.png", "b"))
    tally = prepare(table, tmp_path / "out", ONE).tally
    assert texts(tmp_path / "out") == {"a.png": tuple(f"text {n}" for n in range(7)), "sub/b.png": ("b",)}
    assert not tally.skipped


def test_labelled_rows_of_one_file_have_one_name_and_duplicates_are_skipped(tmp_path: Path) -> None:
    files(tmp_path, "a.png")
    table = tmp_path / "t.csv"
    table.write_text("image,caption,label\na.png,x,1\n./a.png,x,1\nA.png,y,0\n")
    tally = prepare(table, tmp_path / "out", PrepareOptions(num_workers=1, label_column="label")).tally
    assert tally.skipped == {"the same row came before": 1} and tally.samples == 2
    assert {sample.meta["name"] for sample in Shards.open(tmp_path / "out")} == {"a.png"}


def test_names_found_by_similarity_are_counted_and_missing_ones_name_similar_files(tmp_path: Path) -> None:
    files(tmp_path, "a.PNG", "b.png", "x/c.png", "y/c.png")
    table = rows(tmp_path, ("a.png", "1"), ("b.png", "2"), ("B.jpg", "3"), ("gone.png", "4"), ("z/c.png", "5"))
    tally = prepare(table, tmp_path / "out", ONE).tally
    assert tally.noted == {OTHER_NAME: 1} and tally.noted_examples == {OTHER_NAME: ["a.png"]}
    details = {
        row["name"]: row["detail"] for row in map(json.loads, (tmp_path / "out/skipped.jsonl").read_text().splitlines())
    }
    assert details["B.jpg"] == "B.jpg is not there, but b.png is"
    assert details["gone.png"] == str(tmp_path / "gone.png")


def test_the_final_error_names_the_similar_file(tmp_path: Path) -> None:
    files(tmp_path, "a.gif", "a.bmp")
    with pytest.raises(ValueError, match=r"a\.png is not there, but a\.bmp, a\.gif are"):
        prepare(rows(tmp_path, ("a.png", "1")), tmp_path / "out", ONE)


def test_flat_folders_of_published_sets_are_read(tmp_path: Path) -> None:
    files(tmp_path / "images", "1.png", "2.png")
    entries = [
        {"filepath": "val2014", "filename": f"{n}.png", "split": "train", "sentences": [{"raw": "x"}]} for n in (1, 2)
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    tally = prepare(tmp_path / "dataset_coco.json", tmp_path / "out", ONE).tally
    assert (tally.samples, tally.noted) == (2, {OTHER_NAME: 2})
