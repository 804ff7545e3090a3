"""Images with label maps become samples, in ADE20K's layout and in plain folders; what does not fit is told."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from shapes import NAMES, ade20k, draw

from dualfuse.data.image.decode import decode
from dualfuse.data.image.label_map import decode_labels
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.metrics.vqa import read_vocabulary
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.prepare.registry import recognize

ONE = PrepareOptions(num_workers=1)


def by_name(out: Path, split: str) -> dict[str, Sample]:
    return {str(sample.meta["name"]): sample for sample in Shards.open(out / f"{split}-*.tar")}


def skipped(out: Path) -> dict[str, str]:
    return {row["name"]: row["reason"] for row in map(json.loads, (out / "skipped.jsonl").read_text().splitlines())}


def test_ade20k(tmp_path: Path) -> None:
    source, out = ade20k(tmp_path / "ADEChallengeData2016", training=3, validation=2), tmp_path / "out"
    assert recognize(source) == ("label-maps", source)
    summary = prepare(source, out, ONE)
    assert {name: mark.samples for name, mark in summary.tally.splits.items()} == {"train": 3, "val": 2}
    sample = by_name(out, "val")["validation/ADE_00001001.jpg"]
    assert sample.image == (source / "images/validation/ADE_00001001.jpg").read_bytes()
    assert sample.label_map == (source / "annotations/validation/ADE_00001001.png").read_bytes()
    drawn = draw(1001, (72 + 1001 % 3 * 8, 56))[1]
    assert np.array_equal(decode_labels(sample.label_map).numpy(), np.asarray(drawn))
    assert read_vocabulary(out / "labels.txt") == NAMES and not skipped(out)


def test_plain_folders_and_skipped_items(tmp_path: Path) -> None:
    source, out = tmp_path / "mine", tmp_path / "out"
    for number in range(6):
        image, labels = draw(number)
        for kind, drawn, ending in (("images", image, "jpg"), ("annotations", labels, "png")):
            (source / kind / "street").mkdir(parents=True, exist_ok=True)
            drawn.save(source / kind / "street" / f"{number}.{ending}")
    maps = source / "annotations" / "street"
    (maps / "1.png").unlink()
    (source / "images" / "street" / "2.jpg").unlink()
    draw(3, (40, 40))[1].save(maps / "3.png")
    draw(4)[0].save(maps / "4.png")  # colours
    (maps / "5.png").write_bytes((maps / "5.png").read_bytes()[:60])
    summary = prepare(source, out, ONE)
    assert list(by_name(out, "train")) == ["street/0.jpg"]
    assert skipped(out) == {
        "street/1.jpg": "missing label map",
        "street/2.png": "label map without an image",
        "street/3.jpg": "label map of another size",
        "street/4.jpg": "unreadable label map",
        "street/5.jpg": "unreadable label map",
    }
    said = Console(file=io.StringIO(), width=200)
    said.print(summary)
    assert "1 skipped: missing label map, such as street/1.jpg" in said.file.getvalue()  # type: ignore[attr-defined]


def test_label_maps_are_resized_with_their_images(tmp_path: Path) -> None:
    source, out = ade20k(tmp_path / "ade", training=4, validation=1), tmp_path / "out"
    prepare(source, out, replace(ONE, longest_side=36))
    for sample in Shards.open(out / "train-*.tar"):
        labels, whole = decode_labels(sample.label_map), source / "annotations" / str(sample.meta["name"])
        assert labels.shape == decode(sample.image).shape[1:] and max(labels.shape) == 36
        assert set(labels.unique().tolist()) <= set(np.unique(np.asarray(Image.open(whole.with_suffix(".png")))))


def test_output_is_reproducible(tmp_path: Path) -> None:
    source = ade20k(tmp_path / "ade", training=5, validation=2)
    prepare(source, tmp_path / "a", ONE)
    prepare(source, tmp_path / "b", replace(ONE, num_workers=3))
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").glob("*.tar")}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").glob("*.tar")}
    assert prepare(source, tmp_path / "a", ONE).tally.samples == 7


def test_coco_is_recognized_as_captions(tmp_path: Path) -> None:
    """COCO has a folder annotations with json files, and may have label maps below it."""
    source = ade20k(tmp_path / "coco", training=1, validation=1)
    captions = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
    for folder in (source / "annotations", source):  # as COCO unpacks, and a folder of caption files
        (folder / "captions_train2017.json").write_text(json.dumps(captions))
    assert recognize(source / "annotations")[0] == "captions"
    assert recognize(source)[0] == "captions"


def test_equal_names_with_different_suffixes(tmp_path: Path) -> None:
    source = ade20k(tmp_path / "ade", training=2, validation=1)
    first = source / "images/training/ADE_00000000.jpg"
    shutil.copy(first, first.with_suffix(".webp"))
    prepare(source, tmp_path / "out", ONE)
    assert skipped(tmp_path / "out") == {"training/ADE_00000000.webp": "another image of that name came before"}


@pytest.mark.parametrize("split", ["val=0.3"])
def test_shares_apply_to_sources_without_splits(tmp_path: Path, split: str) -> None:
    source = tmp_path / "mine"
    for number in range(12):
        for kind, drawn, ending in zip(("images", "annotations"), draw(number), ("jpg", "png"), strict=True):
            (source / kind).mkdir(parents=True, exist_ok=True)
            drawn.save(source / kind / f"{number}.{ending}")
    summary = prepare(source, tmp_path / "out", replace(ONE, split=split))
    assert set(summary.tally.splits) == {"train", "val"} and summary.tally.samples == 12
