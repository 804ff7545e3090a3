"""Kept and skipped items of any source add up to what the source holds, whatever is wrong with it."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny import png_image

from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import _FORMATS, prepare

CONTENT = {"good": png_image(1), "mute": png_image(2), "broken": b"broken", "empty": b"", "heic": b"\0\0\0\x18ftypheic"}
DEFECTS = (*CONTENT, "missing", "bad")  # bad: the entry itself cannot be read
QUESTION_DEFECTS = (*DEFECTS, "unknown", "unanswered", "unasked", "twice", "several")  # or elsewhere: missing
ONE = PrepareOptions(num_workers=1)
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # faster than a disk
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


def nocaps(root: Path, defects: Sequence[str]) -> Made:
    source, options, expected = captions(root, defects)
    return source.rename(root / "nocaps_val_4500_captions.json"), options, expected


def cifar(root: Path, defects: Sequence[str]) -> Made:
    """In the binary version: an image is raw pixels, so only its label can be wrong."""
    records = [bytes([0, 9 if defect == "bad" else number % 2]) for number, defect in enumerate(defects)]
    pixels = [bytes([number] * 3072) for number in range(len(records))]
    (root / "train.bin").write_bytes(b"".join(a + b for a, b in zip(records, pixels, strict=True)))
    (root / "test.bin").write_bytes(bytes(2 + 3072))
    (root / "fine_label_names.txt").write_text("apple\nbaby\n")
    return root, ONE, len(records) + 1


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
    lines += [line for line, d in zip(lines, defects, strict=True) if d == "twice"]
    (root / "dev.json").write_text("\n".join([json.dumps(row | {"identifier": "dev-x-0-0"}), *lines]))
    return root, ONE, len(lines) + 1


def snli_ve(root: Path, defects: Sequence[str]) -> Made:
    row = {"gold_label": "neutral", "sentence2": "x", "Flickr30K_ID": "none"}
    lines = [json.dumps(row | {"pairID": n, "Flickr30K_ID": str(n)}) for n, _ in enumerate(defects)]
    for number, defect in enumerate(defects):
        image(root / "images", f"{number}.jpg", defect)
    lines = [line if d != "bad" else "{" for line, d in zip(lines, defects, strict=True)]
    lines += [line for line, d in zip(lines, defects, strict=True) if d == "twice"]
    (root / "snli_ve_dev.jsonl").write_text("\n".join([json.dumps(row), *lines]))
    return root, ONE, len(lines) + 1


def easy_vqa(root: Path, defects: Sequence[str]) -> Made:
    for number, defect in enumerate(defects):
        image(root / "train/images", f"{number}.png", defect)
    (root / "train/images").mkdir(parents=True, exist_ok=True)
    questions = [["what", "bad" if defect == "bad" else "red", number] for number, defect in enumerate(defects)]
    (root / "train/questions.json").write_text(json.dumps(questions))
    (root / "answers.txt").write_text("red\nblue\n")
    return root, ONE, len(defects)


def vqav2(root: Path, defects: Sequence[str]) -> Made:
    defects, expected = ("good", *defects), 0
    for start, part in enumerate(("train2014", "val2014", "test-dev2015", "test2015")):
        folder = part.replace("test-dev", "test")
        questions, annotations = [], []
        for number, defect in enumerate(defects):
            key = {"question_id": 10 * number + min(start, 2), "image_id": number}  # those of test-dev are also in test
            text = image(root, f"{folder}/COCO_{folder}_{number:012d}.jpg", defect)
            people = [{"answer": "zebra" if defect == "unknown" else "red", "answer_id": 1}]
            annotation = key | {"answers": people, "multiple_choice_answer": "red", "answer_type": "other"}
            questions += [key | {"question": 7 if defect == "bad" else text}] * (1 + (defect == "twice"))
            annotations += [annotation] * {"unanswered": 0, "several": 2}.get(defect, 1)
            if defect == "unasked" or (part == "test-dev2015" and number % 2):
                questions.pop()
        (root / f"v2_OpenEnded_mscoco_{part}_questions.json").write_text(json.dumps({"questions": questions}))
        expected += len(questions)
        if not part.startswith("test"):
            (root / f"v2_mscoco_{part}_annotations.json").write_text(json.dumps({"annotations": annotations}))
            ids = [{entry["question_id"] for entry in entries} for entries in (questions, annotations)]
            expected += len(annotations) - len(ids[0] & ids[1])
    return root, vocabulary(root), expected


def visual_genome(root: Path, defects: Sequence[str]) -> Made:
    questions = []
    for number, defect in enumerate(defects):
        text = image(root, f"VG_100K/{number}.jpg", defect)
        answer = {"unknown": "zebra", "unanswered": ""}.get(defect, "Red.")
        one = {"qa_id": number, "image_id": number, "question": 7 if defect == "bad" else text, "answer": answer}
        questions.append([one] * {"unasked": 0, "twice": 2}.get(defect, 1))
        questions[-1] += [one | {"answer": "blue", "qa_id": -number}] * (defect == "several")
    content = [{"id": number, "qas": qas} for number, qas in enumerate(questions)]
    (root / "question_answers.json").write_text(json.dumps(content))
    images = [{"image_id": n, "url": f"x/VG_100K/{n}.jpg", "coco_id": n} for n in range(0, len(defects), 2)]
    (root / "image_data.json").write_text(json.dumps(images))
    return root, vocabulary(root), sum(map(len, questions))


def regions(root: Path, defects: Sequence[str]) -> Made:
    content = [
        {"id": n, "regions": [{"region_id": n, "image_id": n, "phrase": image(root, f"VG_100K/{n}.jpg", d)}] * 2}
        for n, d in enumerate(defects)
    ]
    for entry, defect in zip(content, defects, strict=True):
        entry["regions"] = [{"region_id": 1}] if defect == "bad" else entry["regions"]
    (root / "region_descriptions.json").write_text(json.dumps(content))
    return root, ONE, len(defects)


def vocabulary(root: Path) -> PrepareOptions:
    (root.parent / "answers.txt").write_text("red\nblue\n")
    return PrepareOptions(num_workers=1, answers=root.parent / "answers.txt")


Maker = Callable[[Path, Sequence[str]], Made]
SOURCES: tuple[tuple[str, Maker], ...] = (
    ("folder", folder), ("table", table), ("table", labelled), ("captions", captions), ("karpathy", karpathy),
    ("tar", tar), ("folder", classes), ("label-maps", label_maps), ("easy-vqa", easy_vqa),
    ("visual-genome-regions", regions), ("nocaps", nocaps), ("cifar", cifar),
)  # fmt: skip
QUESTION_SOURCES: tuple[tuple[str, Maker], ...] = (
    ("vqav2", vqav2), ("visual-genome", visual_genome), ("nlvr2", nlvr2), ("snli-ve", snli_ve),
)  # fmt: skip
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_every_format_is_covered() -> None:
    assert {kind for kind, _ in (*SOURCES, *QUESTION_SOURCES)} == set(_FORMATS)


@pytest.mark.parametrize(("kind", "make"), SOURCES, ids=[make.__name__ for _, make in SOURCES])
@given(defects=st.lists(st.sampled_from(DEFECTS), min_size=1, max_size=8))
@FEW
def test_kept_and_skipped_items_add_up(kind: str, make: Maker, defects: list[str]) -> None:
    check_counts(kind, make, defects)


@pytest.mark.parametrize(("kind", "make"), QUESTION_SOURCES, ids=[make.__name__ for _, make in QUESTION_SOURCES])
@given(defects=st.lists(st.sampled_from(QUESTION_DEFECTS), min_size=1, max_size=8))
@example(defects=list(QUESTION_DEFECTS))
@FEW
def test_kept_and_skipped_questions_add_up(kind: str, make: Maker, defects: list[str]) -> None:
    check_counts(kind, make, defects)


def check_counts(kind: str, make: Maker, defects: list[str]) -> None:
    with TemporaryDirectory(dir=MEMORY) as name:
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
            assert tally.request["kind"] == kind
            shared = re.search(r"^(\d+) questions of test2015 are also", "\n".join(tally.remarks), re.MULTILINE)
            expected -= int(shared[1]) if shared else 0
            assert tally.samples + sum(tally.skipped.values()) == tally.consumed == expected
            assert len((Path(name) / "out/skipped.jsonl").read_text().splitlines()) == expected - tally.samples
