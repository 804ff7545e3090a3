"""prepare writes labels.txt for every kind of label, and training finds the classes there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from dualfuse.errors import DualfuseError
from dualfuse.metrics.vqa import read_vocabulary
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.prepare.sources.label_names import labels_file
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.image_classification import ImageClassificationConfig
from dualfuse.tasks.finetune.segmentation import SegmentationConfig
from dualfuse.training import loop
from dualfuse.training.label_names import with_labels


def prepared(folder: Path, labels: tuple[object, ...]) -> Path:
    """Prepare a table with a column of labels."""
    folder.mkdir()
    for number, _ in enumerate(labels):
        (folder / f"{number}.png").write_bytes(tiny.png_image(number))
    rows = [{"image": f"{number}.png", "species": label} for number, label in enumerate(labels)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "out"
    prepare(folder / "t.jsonl", out, PrepareOptions(label_column="species", images_only=True, num_workers=1))
    return out


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("dog", "cat", "dog", "café"), ("café", "cat", "dog")),
        ((3, 0, 1), ("0", "1", "2", "3")),
        (("2", "cat"), ("2", "cat")),
    ],
)
def test_prepare_writes_the_labels_of_a_column(
    tmp_path: Path, labels: tuple[object, ...], names: tuple[str, ...]
) -> None:
    out = prepared(tmp_path / "a", labels)
    assert read_vocabulary(out / "labels.txt") == names
    (out / "labels.txt").unlink()
    prepare(tmp_path / "a" / "t.jsonl", out, PrepareOptions(label_column="species", images_only=True, num_workers=1))
    assert read_vocabulary(out / "labels.txt") == names


def test_names_that_do_not_fit_a_line_are_not_written() -> None:
    assert labels_file(["a\nb", "c"]) == labels_file([]) == {}


def test_training_finds_the_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = prepared(tmp_path / "a", ("dog", "cat", "dog", "cat"))
    recipe = tiny.recipe(tmp_path / "in", images=4)
    data = replace(recipe.data, train=(str(out / "train-*.tar"),), validation="", batch_size=2, augment=None)
    recipe = replace(recipe, task=ImageClassificationConfig(), data=data, run=replace(recipe.run, steps=1))
    with caplog.at_level("INFO", "dualfuse"):
        final = loop.train((recipe,), tmp_path / "run")
    assert json.loads((final / "config.json").read_text())["task"]["labels"] == ["cat", "dog"]
    assert "the 2 classes of " in caplog.text
    assert loop.train((recipe,), tmp_path / "run") == final  # already finished


def test_labels_of_several_sets(tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path / "in", images=2)
    for name, labels in (("a", "x\ny\n"), ("b", "x\ny\n"), ("c", "x\nz\n"), ("d", "")):
        (tmp_path / name).mkdir()
        if labels:
            (tmp_path / name / "labels.txt").write_text(labels)

    def names(task: object, *folders: str) -> tuple[str, ...]:
        train = tuple(str(tmp_path / folder / "*.tar") for folder in folders)
        return with_labels(replace(recipe, task=task, data=replace(recipe.data, train=train))).task.labels

    assert names(ImageClassificationConfig(), "a", "b", "d") == ("x", "y")
    assert names(SegmentationConfig(), "a") == ("x", "y")
    assert names(ImageClassificationConfig(num_classes=2), "a") == ("x", "y")
    assert names(ImageClassificationConfig(), "d") == ()
    (tmp_path / "d" / "labels.txt").write_text("0\n7\n")
    assert names(ImageClassificationConfig(), "d") == ()  # indices
    assert names(ImageClassificationConfig(num_classes=2), "a", "a") == ("x", "y")
    own = ImageClassificationConfig(labels=("p", "q"))
    assert names(own, "a", "c") == ("p", "q") == own.labels
    assert names(EntailmentConfig(), "a") == EntailmentConfig().labels
    with pytest.raises(DualfuseError, match=r"different classes: .*c/labels.txt.*--task.labels"):
        names(ImageClassificationConfig(), "a", "c")
    with pytest.raises(DualfuseError, match=r"num_classes is 3, but .* 2 names.*--task.labels"):
        names(ImageClassificationConfig(num_classes=3), "a")


def test_message_of_missing_labels_names_the_flag() -> None:
    with pytest.raises(DualfuseError, match=r"--task\.labels"):
        EntailmentConfig(labels=())
