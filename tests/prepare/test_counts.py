"""Kept and skipped items of any source add up to what the source holds, whatever is wrong with it."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import png_image

from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare

CONTENT = {"good": png_image(1), "mute": png_image(2), "broken": b"broken", "empty": b"", "heic": b"\0\0\0\x18ftypheic"}
DEFECTS = (*CONTENT, "missing", "bad")  # bad: the entry itself cannot be read
ONE = PrepareOptions(num_workers=1)
Made = tuple[Path, PrepareOptions, int]


def image(folder: Path, name: str, defect: str) -> str:
    """Write an image with a defect, and return its caption."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if defect in CONTENT:
        (folder / name).write_bytes(CONTENT[defect])
    return "" if defect == "mute" else f"caption of {name}"


def folder(root: Path, defects: Sequence[str]) -> Made:
    files = [defect for defect in defects if defect in CONTENT]
    for number, defect in enumerate(files):
        suffix = "HEIC" if defect == "heic" else "png"
        (root / f"{number}.txt").write_text(image(root, f"{number}.{suffix}", defect))
    return root, ONE, len(files)


def table(root: Path, defects: Sequence[str]) -> Made:
    lines = [json.dumps({"image": f"{n}.png", "text": image(root, f"{n}.png", d)}) for n, d in enumerate(defects)]
    lines = ["{broken" if defect == "bad" else line for line, defect in zip(lines, defects, strict=True)]
    (root / "t.jsonl").write_text("\n".join([*lines, *lines]))  # each image has two captions
    return root / "t.jsonl", ONE, len(lines) + lines.count("{broken")


def labelled(root: Path, defects: Sequence[str]) -> Made:
    source, _, _ = table(root, defects)
    return source, PrepareOptions(num_workers=1, label_column="text"), 2 * len(defects)


def captions(root: Path, defects: Sequence[str]) -> Made:
    images = [{"id": n, "file_name": f"{n}.png"} if d != "bad" else {"id": n} for n, d in enumerate(defects)]
    texts = [{"image_id": str(n), "caption": image(root, f"{n}.png", d)} for n, d in enumerate(defects)]
    content = {"images": images, "annotations": [*texts, {"image_id": -1, "caption": "lost"}]}
    (root / "captions_x.json").write_text(json.dumps(content))
    return root / "captions_x.json", ONE, len(images) + 1 + defects.count("bad")


def karpathy(root: Path, defects: Sequence[str]) -> Made:
    entries = [
        {"filename": f"{n}.png", "split": "val", "sentences": [{"raw": image(root, f"{n}.png", d)}]}
        | ({"sentences": [{}]} if d == "bad" else {})
        for n, d in enumerate(defects)
    ]
    (root / "dataset.json").write_text(json.dumps({"images": entries}))
    return root / "dataset.json", ONE, len(entries) + defects.count("bad")


def tar(root: Path, defects: Sequence[str]) -> Made:
    with tarfile.open(root / "train.tar", "w") as archive:
        for number, defect in enumerate(defects):
            members = {"png": CONTENT[defect]} if defect in CONTENT else {}
            for suffix, data in {**members, "txt": b"" if defect == "mute" else b"text"}.items():
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return root / "train.tar", ONE, len(defects)


def classes(root: Path, defects: Sequence[str]) -> Made:
    for number, name in enumerate(("a/x.png", "b/x.png")):
        image(root, name, "good" if number else "broken")
    files = [defect for defect in defects if defect in CONTENT]
    for number, defect in enumerate(files):
        image(root, f"{'ab'[number % 2]}/{number}.png" if defect != "mute" else f"{number}.png", defect)
    return root, PrepareOptions(num_workers=1, label_column="folder"), len(files) + 2


def label_maps(root: Path, defects: Sequence[str]) -> Made:
    image(root / "annotations", "x.png", "good")
    for number, defect in enumerate(defects):
        image(root / "images", f"{number}.png", defect if defect in CONTENT else "good")
        image(root / "annotations", f"{number}.png", "missing" if defect == "bad" else "mute")
    image(root / "images", "x.jpg", "good")
    return root, ONE, len(defects) + 1


def nlvr2(root: Path, defects: Sequence[str]) -> Made:
    row = {"identifier": "dev-0-0-0", "sentence": "x", "label": "True"}
    lines = [json.dumps(row | {"identifier": f"dev-{n}-0-0"}) for n, _ in enumerate(defects)]
    for number, defect in enumerate(defects):
        image(root / "dev", f"dev-{number}-0-img0.png", defect)
        image(root / "dev", f"dev-{number}-0-img1.png", "good")
    lines = [line if d != "bad" else "{" for line, d in zip(lines, defects, strict=True)]
    (root / "dev.json").write_text("\n".join([json.dumps(row | {"identifier": "dev-x-0-0"}), *lines]))
    return root, ONE, len(defects) + 1


def snli_ve(root: Path, defects: Sequence[str]) -> Made:
    row = {"gold_label": "neutral", "sentence2": "x", "Flickr30K_ID": "none"}
    lines = [json.dumps(row | {"pairID": n, "Flickr30K_ID": str(n)}) for n, _ in enumerate(defects)]
    for number, defect in enumerate(defects):
        image(root / "images", f"{number}.jpg", defect)
    lines = [line if d != "bad" else "{" for line, d in zip(lines, defects, strict=True)]
    (root / "snli_ve_dev.jsonl").write_text("\n".join([json.dumps(row), *lines]))
    return root, ONE, len(defects) + 1


def easy_vqa(root: Path, defects: Sequence[str]) -> Made:
    for number, defect in enumerate(defects):
        image(root / "train/images", f"{number}.png", defect)
    (root / "train/images").mkdir(parents=True, exist_ok=True)
    questions = [["what", "bad" if defect == "bad" else "red", number] for number, defect in enumerate(defects)]
    (root / "train/questions.json").write_text(json.dumps(questions))
    (root / "answers.txt").write_text("red\nblue\n")
    return root, ONE, len(defects)


SOURCES: tuple[Callable[[Path, Sequence[str]], Made], ...] = (
    folder, table, labelled, captions, karpathy, tar, classes, label_maps, nlvr2, snli_ve, easy_vqa,
)  # fmt: skip


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
@given(defects=st.lists(st.sampled_from(DEFECTS), min_size=1, max_size=8))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_kept_and_skipped_items_add_up(make: Callable[[Path, Sequence[str]], Made], defects: list[str]) -> None:
    with TemporaryDirectory() as name:
        root = Path(name, "source")
        root.mkdir()
        source, options, expected = make(root, defects)
        if not expected:
            return
        try:
            tally = prepare(source, Path(name, "out"), options).tally
        except ValueError as error:  # nothing was usable
            match = re.search(r"none of the first (\d+) items is usable", str(error))
            assert match, error
            assert int(match[1]) == expected
        else:
            assert tally.samples + sum(tally.skipped.values()) == tally.consumed == expected
            assert len((Path(name) / "out/skipped.jsonl").read_text().splitlines()) == expected - tally.samples
