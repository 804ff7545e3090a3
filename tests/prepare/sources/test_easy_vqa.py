"""A miniature of the package easy_vqa: prepared, trained, evaluated and queried by the commands."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tiny import lines, png_image

from dualfuse.cli import main as cli
from dualfuse.data.shards.shards import Shards
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.prepare.registry import FORMATS, recognize

ANSWERS = ("circle", "green", "yes", "no")
ASKED = (("what color is the shape?", "green"), ("what is the green shape?", "circle"), ("is there a circle?", "yes"))
IMAGES = {"train": 30, "test": 4}
ONE = PrepareOptions(num_workers=1)


def package(root: Path) -> Path:
    """What `pip install easy-vqa` leaves: python files, and data."""
    for part, number in IMAGES.items():
        images = root / "easy_vqa" / "data" / part / "images"
        images.mkdir(parents=True)
        for image in range(number):
            (images / f"{image}.png").write_bytes(png_image(image if part == "train" else 100 + image))
        questions = [[text, answer, image] for image in range(number) for text, answer in ASKED]
        (images.parent / "questions.json").write_text(json.dumps(questions))
    (root / "easy_vqa" / "__init__.py").write_text("from .easy_vqa import *\n")
    (root / "easy_vqa" / "data" / "README.md").write_text("# data/\n")
    (root / "easy_vqa" / "data" / "answers.txt").write_text("\n".join(ANSWERS))
    return root / "easy_vqa"


def is_apart(image: int) -> bool:
    """The rule that the documentation states."""
    return int.from_bytes(hashlib.sha256(str(image).encode()).digest()[:8], "big") < 2**64 / 10


def test_questions_and_splits(tmp_path: Path) -> None:
    folder, out = package(tmp_path), tmp_path / "out"
    summary = prepare(folder, out, ONE)
    of = {split: list(Shards.open(out / f"{split}-*.tar")) for split in ("train", "val", "test")}
    apart = {image for image in range(IMAGES["train"]) if is_apart(image)}
    assert 0 < len(apart) < 10
    assert {sample.meta["image_id"] for sample in of["val"]} == apart
    assert {sample.meta["image_id"] for sample in of["train"]} == set(range(IMAGES["train"])) - apart
    assert {name: len(samples) for name, samples in of.items()} == {
        "train": 3 * (IMAGES["train"] - len(apart)),
        "val": 3 * len(apart),
        "test": 3 * IMAGES["test"],
    }
    asked = sorted(of["train"] + of["val"], key=lambda sample: int(str(sample.meta["id"]))) + of["test"]
    assert [sample.meta["id"] for sample in asked] == list(range(3 * sum(IMAGES.values())))
    kinds = ("colour", "shape", "yes/no")
    for number, sample in enumerate(asked):
        text, answer = ASKED[number % 3]
        image = number // 3 - (0 if number < 90 else 30)
        assert sample.texts == (text,)
        assert sample.image == png_image(image if number < 90 else 100 + image)
        assert (sample.meta["answers"], sample.meta["answer_type"]) == ([answer], kinds[number % 3])
    assert (out / "answers.txt").read_text() == "circle\ngreen\nyes\nno\n"
    assert summary.tally.remarks[0].startswith("answers.txt: 4 answers, as in the source; val: a tenth")


def test_missing_parts_are_reported(tmp_path: Path) -> None:
    data, out = package(tmp_path) / "data", tmp_path / "out"
    (data / "train" / "images" / "3.png").unlink()
    questions = json.loads((data / "train" / "questions.json").read_text())
    questions[0][1] = "mauve"
    (data / "train" / "questions.json").write_text(json.dumps(questions))
    (data / "test").rename(tmp_path / "test")
    summary = prepare(data, out, ONE)
    assert summary.tally.skipped == {"its answer is not in answers.txt": 1, "missing image": 3}
    assert summary.tally.remarks[1:] == ["missing: test"]


@pytest.mark.parametrize("content", ['{"questions": []}', '[["what?", "circle"]]', '[["what?", 3, 0]]'])
def test_other_questions_are_refused(tmp_path: Path, content: str) -> None:
    data = package(tmp_path) / "data"
    (data / "train" / "questions.json").write_text(content)
    with pytest.raises(ValueError, match=r"questions\.json is not a list of \[question, answer, image number\]"):
        prepare(data, tmp_path / "out", ONE)


def test_layout_is_recognized(tmp_path: Path) -> None:
    folder = package(tmp_path)
    assert recognize(folder) == ("easy-vqa", folder / "data") == recognize(folder / "data")
    assert "easy-vqa" in FORMATS
    with pytest.raises(ValueError, match="this source has the format 'easy-vqa'"):
        prepare(folder, tmp_path / "out", PrepareOptions(images=folder))
    (folder / "data" / "answers.txt").unlink()
    assert recognize(folder / "data")[0] != "easy-vqa"


@pytest.mark.parametrize("recipe", ["demo-vqa", "demo-vqa-bridgetower"])
def test_from_the_package_to_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str) -> None:
    folder, out, run = package(tmp_path), tmp_path / "out", tmp_path / "run"

    def dualfuse(*arguments: object) -> str:
        assert cli.main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    assert "answers.txt: 4 answers" in dualfuse("prepare", folder, out)
    data = ("--data.train", f"{out}/train-*.tar", "--data.validation", f"{out}/val-*.tar")
    flags = (
        "--run.steps",
        3,
        "--run.log-every",
        1,
        "--data.batch-size",
        8,
        "--task.answers",
        out / "answers.txt",
    )
    dualfuse("train", recipe, "--out", run, *data, *flags)
    assert {"validation/accuracy", "validation/accuracy/colour"} <= set(lines(run)[-1])
    metrics, answers = tmp_path / "metrics.json", tmp_path / "answers.json"
    said = dualfuse(
        "evaluate", run / "final", f"{out}/test-*.tar", "--num-workers", 0, "--out", metrics, "--answers", answers
    )
    assert "12 questions, 12 of them labelled, 0 excluded" in said
    assert set(json.loads(metrics.read_text())) == {
        "accuracy",
        "accuracy/colour",
        "accuracy/shape",
        "accuracy/yes/no",
        "score",
    }
    assert {answer["question_id"] for answer in json.loads(answers.read_text())} == set(range(90, 102))
    image = folder / "data" / "test" / "images" / "0.png"
    assert any(name in dualfuse("predict", run / "final", "--image", image, "--text", ASKED[0][0]) for name in ANSWERS)
