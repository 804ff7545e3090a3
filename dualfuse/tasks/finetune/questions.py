"""How tasks that answer with a name read their samples: a question, its label, and a batch of both."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypedDict

import numpy as np
import torch
from torch import Tensor
from tyro.constructors import PrimitiveConstructorSpec

from dualfuse.data.loader import Batch, Example
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.padding import pad_texts
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.runner import Plan
from dualfuse.io import listing
from dualfuse.metrics.accuracy import Question
from dualfuse.metrics.base import MetricInfo, shares
from dualfuse.metrics.vqa import read_vocabulary
from dualfuse.tasks.base import TaskConfig

Names = Annotated[
    tuple[str, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="FILE",
        instance_from_str=lambda words: read_vocabulary(Path(words[0])),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda names: [f"{len(names)} names"],
    ),
]
"""Names of classes or answers; on the command line a file with one name per line, in config.json the names."""

STACKED = ("image", "images", "target")


@dataclass(frozen=True)
class ClassesConfig(TaskConfig):
    """A number of classes and, if they are known, their names."""

    num_classes: int = 2
    labels: Names = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.labels or tuple(map(str, range(self.num_classes)))

    def with_labels(self, labels: tuple[str, ...]) -> Self:
        """Return the config with ``labels``, unless it has its own or they are numbers below ``num_classes``.

        Raises DualfuseError if ``num_classes`` was set to another number.
        """
        if self.labels or set(labels) <= set(self.names):
            return self
        if self.num_classes not in (type(self).num_classes, len(labels)):
            raise DualfuseError(
                f"task.num_classes is {self.num_classes}, but the data has a labels.txt with {len(labels)} names; give "
                "the names with --task.labels FILE, or remove that file"
            )
        return replace(self, labels=labels)


class QuestionExample(TypedDict):
    """Images (P, 3, H, W), one text (T,), and the question; in training also a target: an index, or scores (C,)."""

    images: Tensor
    ids: np.ndarray
    question: Question


class QuestionConfig(TaskConfig):
    """A config that also reads unlabelled samples."""

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare the accuracy, and accuracies per label, type or number of answers."""
        return shares("accuracy", "accuracy/*")

    @abstractmethod
    def read_question(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Example:
        """Return an example with its "question" and without target, whether or not the sample is labelled."""

    def collate(self, examples: Sequence[Any]) -> Batch:  # Any: what read and read_question return
        """Return a batch of examples that all have a target, or all have none; texts are padded to the longest one.

        In training it has the "target": class indices (B,) or scores (B, C); otherwise it has the "questions".
        """
        columns = {name: [example[name] for example in examples] for name in examples[0]}
        batch: dict[str, Any] = {name: torch.stack(columns[name]) for name in STACKED if name in columns}
        if "ids" in columns:
            batch["ids"], batch["mask"] = pad_texts(columns["ids"])
        return batch if "target" in columns else batch | {"questions": tuple(columns["question"])}


class PairQuestionConfig(QuestionConfig):
    """Reads ``num_images`` images, one text, and a label; a base class of frozen dataclasses."""

    labels: tuple[str, ...]
    num_images: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Validate the labels."""
        check_names(self.labels)

    def read_question(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> QuestionExample:
        """Read images and text, and the label if there is one."""
        return read_question(sample, label_of(sample, self.labels), processor, rng, self.num_images)

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Example:
        """Read images, text and label; every image is augmented independently."""
        return with_label(self.read_question(sample, processor, rng), self.labels)


@dataclass(frozen=True)
class ImageClassesConfig(ClassesConfig, QuestionConfig):
    """Reads an image, no text, and a class."""

    reads_text: ClassVar[bool] = False
    pipeline_tag: ClassVar[str] = "image-classification"

    num_classes: int = 1000
    """Number of classes if ``labels`` is empty, as in converted checkpoints: they are named 0, 1, 2, ..."""
    labels: Names = ()
    """Names of the classes, in the order of their indices."""

    def __post_init__(self) -> None:
        """Validate the classes."""
        check_names(self.names)

    def read_question(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Example:
        """Read the image (3, H, W), and the label if there is one."""
        target = label_of(sample, self.names)
        return {"image": processor.image(sample.image, rng), "question": question_of(sample, target)}

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Example:
        """Read image and label; ``BrokenSample`` without a label."""
        return with_label(self.read_question(sample, processor, rng), self.names)


def check_names(names: Sequence[str]) -> None:
    """Raise DualfuseError for fewer than two names, and for duplicates."""
    if len(set(names)) < max(2, len(names)):
        raise DualfuseError(
            f"{len(names)} names of classes, {len(set(names))} of them different; give two or more, one per line of a "
            "file, with --task.labels FILE"
        )


def read_question(
    sample: Sample, target: tuple[str, ...], processor: Processor, rng: np.random.Generator, num_images: int = 1
) -> QuestionExample:
    """Return the first ``num_images`` images and the text; ``BrokenSample`` if one is missing."""
    if len(sample.texts) != 1:
        raise BrokenSample(sample.key, f"it has {len(sample.texts)} texts; one is needed, so write a sample for each")
    if 1 + len(sample.other_images) < num_images:
        raise BrokenSample(sample.key, f"it has {1 + len(sample.other_images)} images of the {num_images} needed")
    images = [processor.image(image, rng) for image in (sample.image, *sample.other_images)[:num_images]]
    return {
        "images": torch.stack(images),
        "ids": processor.text.encode(sample.texts[0]).ids,
        "question": question_of(sample, target),
    }


def question_of(sample: Sample, target: tuple[str, ...]) -> Question:
    """Return the question of a sample, whose text may be missing."""
    name = sample.meta.get("id", sample.key)
    if not isinstance(name, str | int):
        raise BrokenSample(sample.key, f'its "id" is a {type(name).__name__}; a string or a number is needed')
    return Question(sample.key, name, "".join(sample.texts[:1]), target, str(sample.meta.get("answer_type", "")))


def label_of(sample: Sample, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the "label" of a sample, by name or index; empty if it has none, ``BrokenSample`` if it is unknown."""
    label = sample.meta.get("label")
    if label is None:
        return ()
    if str(label) in labels:
        return (str(label),)
    if isinstance(label, int) and 0 <= label < len(labels):
        return (labels[label],)
    raise BrokenSample(
        sample.key,
        f"its label is {label!r}; the labels of the task are {listing(labels, 20)}; "
        "give all of them, one per line, with --task.labels FILE",
    )


def with_label(example: Example, labels: Sequence[str]) -> dict[str, Any]:  # Any: see Example
    """Return a training example, whose target is the index of its label; ``BrokenSample`` without a label."""
    question: Question = example["question"]
    if not question.target:
        raise BrokenSample(question.key, 'it has no "label" in its json')
    return {**example, "target": torch.tensor(labels.index(question.target[0]))}
