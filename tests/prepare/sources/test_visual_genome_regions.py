"""Visual Genome's region descriptions, in the layout of the published files, become captions of their images."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny import png_image

from dualfuse.data.caption_dataset import CaptionDataset
from dualfuse.data.shards.shards import Shards
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.prepare.registry import recognize
from dualfuse.prepare.summary import Summary

ONE = PrepareOptions(num_workers=1)


def region(number: int, image: int, phrase: str) -> dict[str, object]:
    box = {"width": 82, "height": 139, "y": 57, "x": 421}
    return {"region_id": number, "image_id": image, "phrase": phrase, **box}


def genome(root: Path) -> Path:
    content = [
        {"regions": [region(1, 1, "the clock is green "), region(2, 1, "a man\nwalks"), region(3, 1, "a man walks")],
         "id": 1},
        {"regions": [region(4, 2, "a red car"), region(5, 2, "A red car"), region(6, 2, "  ")], "id": 2},
        {"regions": [region(7, 3, "a lost image"), {"region_id": 8, "image_id": 3}], "id": 3},
        {"regions": [], "id": 4},
        {"regions": [region(9, 5, "")], "id": 5},
    ]  # fmt: skip
    url = "https://cs.stanford.edu/people/rak248"
    data = [
        {"width": 32, "url": f"{url}/VG_100K_2/1.jpg", "height": 32, "image_id": 1, "coco_id": None, "flickr_id": None},
        {"width": 32, "url": f"{url}/VG_100K/2.jpg", "height": 32, "image_id": 2, "coco_id": 77, "flickr_id": 5},
    ]
    for name in ("VG_100K_2/1.jpg", "VG_100K/2.jpg", "VG_100K/5.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png_image(int(name[-5])))
    (root / "image_data.json").write_text(json.dumps(data))
    (root / "region_descriptions.json").write_text(json.dumps(content))
    return root / "region_descriptions.json"


def printed(summary: Summary) -> str:
    console = Console(record=True, width=400, file=io.StringIO())
    console.print(summary)
    return console.export_text()


def test_descriptions_are_captions(tmp_path: Path) -> None:
    source, out = genome(tmp_path / "vg"), tmp_path / "out"
    assert recognize(source) == recognize(source.parent) == ("visual-genome-regions", source)
    summary = printed(prepare(source, out, ONE))
    first, second = Shards.open(out / "train-*.tar")
    assert first.texts == ("the clock is green", "a man walks") and first.image == png_image(1)
    assert second.texts == ("a red car", "A red car") and second.meta["coco_id"] == 77
    assert first.meta["image_id"] == 1 and "coco_id" not in first.meta
    assert [sample.texts for sample in CaptionDataset(Shards.open(out))] == [
        ("the clock is green",), ("a man walks",), ("a red car",), ("A red car",)
    ]  # fmt: skip
    rows = map(json.loads, (out / "skipped.jsonl").read_text().splitlines())
    assert [row["reason"] for row in rows] == ["missing image", "no caption", "incomplete entry"]
    assert "1 repeated descriptions of an image were removed" in summary
    assert list(out.glob("*.tar")) == [out / "train-00000.tar"]


def test_without_image_data_images_are_found_by_number(tmp_path: Path) -> None:
    source = genome(tmp_path / "vg")
    source.with_name("image_data.json").unlink()
    summary = printed(prepare(source, tmp_path / "out", ONE))
    assert "missing: image_data.json; so no image has its coco_id" in summary
    found = [(sample.meta["image_id"], sample.meta["name"]) for sample in Shards.open(tmp_path / "out")]
    assert found == [(1, "1.jpg"), (2, "2.jpg")]


def test_a_folder_with_questions_is_read_as_questions(tmp_path: Path) -> None:
    source = genome(tmp_path / "vg")
    questions = source.with_name("question_answers.json")
    questions.write_text(json.dumps([{"id": 1, "qas": []}]))
    assert recognize(source.parent) == ("visual-genome", questions)
    assert recognize(source) == ("visual-genome-regions", source)
    with pytest.raises(ValueError, match="--answers is for VQAv2 and Visual Genome"):
        (tmp_path / "answers.txt").write_text("red\n")
        prepare(source, tmp_path / "out", PrepareOptions(num_workers=1, answers=tmp_path / "answers.txt"))
