"""Folders of classes and tars with .cls, the layouts of ImageNet: from files to an evaluated model, by the commands."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualfuse.cli import main as cli
from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.processor import Processor
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.tasks.finetune.image_classification import ImageClassificationConfig

BY_FOLDER = PrepareOptions(label_column="folder", num_workers=1)
COLOURS = np.concatenate([np.eye(3), 1 - np.eye(3)])
IDS = tuple(f"n0144076{number}" for number in range(6))
NAMES = ("tench", "goldfish, Carassius auratus", "crane", "crane", "hen", "jay")


def coloured(number: int, seed: int) -> bytes:
    pixels = 255 * np.clip(COLOURS[number] * 0.8 + np.random.default_rng(seed).normal(0, 0.05, (32, 32, 3)), 0, 1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def imagenet(folder: Path, each: int = 8) -> Path:
    """Six classes of one colour, eight images each to learn from and two to judge on."""
    for number, name in enumerate(IDS):
        for image in range(each):
            put(folder / "train" / name / f"{name}_{image}.JPEG", coloured(number, 10 * number + image))
        for image in range(2):
            seed = 100 + 10 * number + image
            put(folder / "val" / name / f"ILSVRC2012_val_{seed:08d}.JPEG", coloured(number, seed))
    return folder


def labels(folder: Path, pattern: str) -> dict[str, object]:
    return {str(sample.meta["name"]): sample.meta.get("label") for sample in Shards.open(folder / pattern)}


def test_imagenet_to_top_one_and_top_five(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = imagenet(tmp_path / "imagenet"), tmp_path / "shards"
    names = "\n".join(f"{name} {called}" for name, called in zip(IDS, NAMES, strict=True))
    (tmp_path / "synsets.txt").write_text("n00000000 nothing of this\n" + names)
    flags = ("--label", "folder", "--class-names", str(tmp_path / "synsets.txt"))
    assert cli.main(["prepare", str(source), str(out), *flags]) == 0
    said = capsys.readouterr().out
    assert "several classes are called crane: their labels include the folder" in said and "6 labels: " in said
    called = [*NAMES[:2], f"crane ({IDS[2]})", f"crane ({IDS[3]})", *NAMES[4:]]
    assert (out / "labels.txt").read_text().splitlines() == called
    found = labels(out, "val-*.tar")
    assert len(found) == 12 and len(labels(out, "train-*.tar")) == 48
    assert found[f"val/{IDS[3]}/ILSVRC2012_val_00000130.JPEG"] == called[3]

    small = "--model.width 32 --model.depth 2 --model.vl-expert-start 1 --model.image-size 32 32"
    data = "--data.image-size 32 32 --data.batch-size 24 --data.num-workers 0"
    quick = "--optim.warmup 5 --optim.lr 5e-3 --run.steps 40 --run.log-every 20"
    learn = ["train", "vlmo-nano-classes", "--out", str(tmp_path / "run"), "--task.labels", str(out / "labels.txt")]
    assert (
        cli.main([*learn, "--data.train", str(out / "train-*.tar"), *small.split(), *data.split(), *quick.split()]) == 0
    )
    numbers = tmp_path / "numbers.json"
    judge = ["evaluate", str(tmp_path / "run" / "final"), str(out / "val-*.tar"), "--out", str(numbers)]
    assert cli.main([*judge, "--num-workers", "0", "--answers", str(tmp_path / "answers.jsonl")]) == 0
    metrics = json.loads(numbers.read_text())
    assert metrics["accuracy"] > 0.9 and metrics["accuracy/top5"] == 1.0
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    right = [answer["answer"] == label for answer, label in zip(answers, found.values(), strict=True)]
    assert sum(right) / 12 == pytest.approx(metrics["accuracy"])


def test_classes_without_splits_and_images_outside_of_classes(tmp_path: Path) -> None:
    for name in ("test", "bus"):  # not all are splits, so both are classes
        put(tmp_path / "a" / name / "deep" / "1.jpg", coloured(1, 1))
    put(tmp_path / "a" / "stray.jpg", coloured(2, 2))
    put(tmp_path / "a" / "solution.csv", b"ImageId,PredictionString\n1,bus\n")  # a table beside classes is none of them
    summary = prepare(tmp_path / "a", tmp_path / "out", BY_FOLDER)
    assert labels(tmp_path / "out", "train-*.tar") == {"bus/deep/1.jpg": "bus", "test/deep/1.jpg": "test"}
    assert summary.tally.skipped == {"not in a folder of a class": 1}
    assert (tmp_path / "out" / "labels.txt").read_text() == "bus\ntest\n"

    for name in ("train/0/1.jpg", "validation/1/2.jpg", "test/3.jpg"):
        put(tmp_path / "b" / name, coloured(3, len(name)))
    put(tmp_path / "b" / "train" / "0" / "1.txt", b"a cat\n")
    summary = prepare(tmp_path / "b", tmp_path / "split", BY_FOLDER)
    assert labels(tmp_path / "split", "train-*.tar") == {"train/0/1.jpg": 0}
    assert labels(tmp_path / "split", "val-*.tar") == {"validation/1/2.jpg": 1}
    assert summary.tally.skipped == {"not in a folder of a class": 1}
    assert Shards.open(tmp_path / "split" / "train-*.tar")[0].texts == ("a cat",)


def test_without_the_option_folders_are_not_classes(tmp_path: Path) -> None:
    imagenet(tmp_path / "imagenet", each=1)
    with pytest.raises(ValueError, match="no caption: 18"):
        prepare(tmp_path / "imagenet", tmp_path / "out", PrepareOptions(num_workers=1))


def test_class_names_may_be_numbers(tmp_path: Path) -> None:
    """A file of names may hold numbers: those of classes in another order."""
    source = imagenet(tmp_path / "imagenet", each=1)
    (tmp_path / "numbers.csv").write_text("".join(f"{name},{9 - n}\n" for n, name in enumerate(IDS)))
    prepare(source, tmp_path / "out", replace(BY_FOLDER, class_names=tmp_path / "numbers.csv"))
    assert list(labels(tmp_path / "out", "train-*.tar").values()) == [9, 8, 7, 6, 5, 4]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"class_names": "short.txt"}, "has no names for 5 folders: n01440761, n01440762, n01440763, and 2 more"),
        ({"label_column": "verdict"}, "--label verdict names a column of a table.*give --label folder"),
        ({"label_column": "", "class_names": "short.txt"}, "--class-names names the folders of classes"),
        ({"text_columns": ("a",)}, "are for tables"),
        ({"split": "val=0.5"}, "has splits already"),
    ],
)
def test_invalid_options_are_refused(tmp_path: Path, changes: dict[str, object], match: str) -> None:
    source = imagenet(tmp_path / "imagenet", each=1)
    (tmp_path / "short.txt").write_text(f"{IDS[0]}\ttench\n")
    paths = {"class_names": tmp_path / "short.txt"} if "class_names" in changes else {}
    with pytest.raises(ValueError, match=match):
        prepare(source, tmp_path / "out", replace(BY_FOLDER, **(changes | paths)))
    put(tmp_path / "flat" / "1.jpg", coloured(0, 0))
    with pytest.raises(ValueError, match=r"needs a sub-folder for each class, such as cat/1\.jpg"):
        prepare(tmp_path / "flat", tmp_path / "out", BY_FOLDER)


def tar_with_classes(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, said in enumerate(("3", "00", "hen\n")):
            for ending, content in (("jpg", coloured(number, number)), ("cls", said.encode())):
                info = tarfile.TarInfo(f"{number:04d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def test_tars_with_class_numbers(tmp_path: Path) -> None:
    """Read as they are, and through prepare."""
    tar = tar_with_classes(tmp_path / "imagenet-val-000000.tar")
    direct = Shards.open(tar)
    assert [sample.meta["label"] for sample in direct] == [3, 0, "hen"]
    cfg = ImageClassificationConfig(labels=("cock", "hen", "jay", "crane"))
    processor = Processor(ImageTransform((32, 32)), TextTransform(8))
    assert [cfg.read(sample, processor, np.random.default_rng(0))["target"] for sample in direct] == [3, 0, 1]
    prepare(tar, tmp_path / "out", PrepareOptions(images_only=True, num_workers=1))
    assert [sample.meta["label"] for sample in Shards.open(tmp_path / "out" / "val-*.tar")] == [3, 0, "hen"]


def test_a_tar_without_classes_has_no_labels(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("0.jpg", coloured(0, 0)), ("1.jpg", coloured(1, 1)), ("1.cls", b"9" * 5000)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    first, second = Shards.open(tmp_path / "a.tar")
    assert "label" not in first.meta and second.meta["label"] == "9" * 5000  # no number that anybody would count
    prepare(tmp_path / "a.tar", tmp_path / "out", PrepareOptions(images_only=True, num_workers=1))
    first, second = Shards.open(tmp_path / "out" / "train-*.tar")
    assert "label" not in first.meta and second.meta["label"] == "9" * 5000
