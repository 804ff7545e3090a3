"""Answers with one of several names: what all such tasks share, and those with a text about one or more images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.data.loader import Batch, Example
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.padding import pad_texts
from dualfuse.io import listing
from dualfuse.layers.heads import ClassificationHead
from dualfuse.metrics.accuracy import Accuracy, Metric, Question
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import Processor, Task, TaskOutput


class QuestionExample(TypedDict):
    """Images (P, 3, H, W) and one text (T,), who asked; and to be trained its ``target``: a number, or scores (C,)."""

    images: Tensor
    ids: np.ndarray
    asked: Question
    target: NotRequired[Tensor]


class QuestionBatch(TypedDict):
    """B questions: images (B, P, 3, H, W); ids, mask (B, T).

    To be trained they come with ``target``, label numbers (B,) or scores (B, C); to be answered, with who ``asked``.
    """

    images: Tensor
    ids: Tensor
    mask: Tensor
    target: NotRequired[Tensor]
    asked: NotRequired[tuple[Question, ...]]


class QuestionConfig(Protocol):
    """The config of a task that answers: it also reads what is only to be answered."""

    def read_question(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Example:
        """Turn a sample into a row with who "asked" and without target, whether or not its answer is known."""
        ...

    def collate(self, rows: Sequence[Any]) -> Batch:  # Any: what ask gives
        """Put rows together to a batch; "asked" is a tuple."""
        ...


def read_question(
    sample: Sample, truth: tuple[str, ...], processor: Processor, rng: np.random.Generator, num_images: int = 1
) -> QuestionExample:
    """Return the first ``num_images`` images, each varied by itself, and the text; ``BrokenSample`` if one is missing."""
    if len(sample.texts) != 1:
        raise BrokenSample(sample.key, f"it has {len(sample.texts)} texts; one is needed, so write a sample for each")
    if 1 + len(sample.other_images) < num_images:
        raise BrokenSample(
            sample.key, f"it has {1 + len(sample.other_images)} images of the {num_images} that are compared"
        )
    images = [processor.image(image, rng) for image in (sample.image, *sample.other_images)[:num_images]]
    return {
        "images": torch.stack(images),
        "ids": processor.text.encode(sample.texts[0]).ids,
        "asked": question_of(sample, truth),
    }


def question_of(sample: Sample, truth: tuple[str, ...]) -> Question:
    """Return what is known of a sample's question and its right answer; the text may be missing."""
    name = sample.meta.get("id", sample.key)
    if not isinstance(name, str | int):
        raise BrokenSample(sample.key, f'its "id" is a {type(name).__name__}; a string or a number is needed')
    return Question(sample.key, name, "".join(sample.texts[:1]), truth, str(sample.meta.get("answer_type", "")))


def label_of(sample: Sample, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the label in the sample's json, by name or number, or none; ``BrokenSample`` if it is not of ``labels``."""
    label = sample.meta.get("label")
    if label is None:
        return ()
    if str(label) in labels:
        return (str(label),)
    if isinstance(label, int) and 0 <= label < len(labels):
        return (labels[label],)
    raise BrokenSample(sample.key, f"its label is {label!r}; the labels of the task are {listing(labels, 20)}")


def with_label(row: QuestionExample, labels: Sequence[str]) -> QuestionExample:
    """Return a row to learn from; ``BrokenSample`` if its label is not known."""
    asked = row["asked"]
    if not asked.target:
        raise BrokenSample(asked.key, 'it has no "label" in its json')
    return with_target(row, torch.tensor(labels.index(asked.target[0])))


def with_target(row: QuestionExample, target: Tensor) -> QuestionExample:
    """Return a row to learn from."""
    trained = row.copy()
    trained["target"] = target
    return trained


def collate_questions(rows: Sequence[QuestionExample]) -> QuestionBatch:
    """Make a batch of rows that are all to be trained or all to be answered; texts are padded to the longest."""
    ids, mask = pad_texts([row["ids"] for row in rows])
    batch: QuestionBatch = {
        "images": torch.stack([row["images"] for row in rows]),
        "ids": ids,
        "mask": mask,
    }
    targets = [row["target"] for row in rows if "target" in row]
    if targets:
        batch["target"] = torch.stack(targets)
    else:
        batch["asked"] = tuple(row["asked"] for row in rows)
    return batch


class Classification(Task):
    """Answers with one of ``names``."""

    top_k = 1
    """How many of the best names :meth:`metric` looks at."""

    def __init__(self, cfg: QuestionConfig, model: VisionLanguageModel, names: tuple[str, ...]) -> None:
        """What answers is built by the tasks."""
        super().__init__()
        self.cfg, self.model, self.names = cfg, model, names

    @abstractmethod
    def logits(self, batch: Any) -> Tensor:  # Any: what its config's collate gives
        """Return (B, C) float32."""

    def forward(self, batch: Any) -> TaskOutput:  # Any: what its config's collate gives
        """Learn from targets."""
        assert "target" in batch, "a batch of ask() has no targets to learn from"
        return self.loss(self.logits(batch), batch["target"])

    def loss(self, logits: Tensor, target: Tensor) -> TaskOutput:
        """Return the cross-entropy of logits (B, C) against the numbers (B,) of the right names."""
        loss = F.cross_entropy(logits, target)
        right = (logits.argmax(1) == target).float().mean()
        return TaskOutput(loss, {"loss": loss.detach(), "accuracy": right})

    def probabilities(self, batch: Any) -> Tensor:  # Any: what its config's collate gives
        """Return the probability (B, C) of each name."""
        return self.logits(batch).softmax(1)

    def metric(self) -> Metric:
        """Return a fresh counter of what is right."""
        return Accuracy()


class PairClassification(Classification):
    """Fuses each image with the text, and classifies what stands for all pairs."""

    def __init__(
        self,
        cfg: QuestionConfig,
        model: VisionLanguageModel,
        names: tuple[str, ...],
        *,
        hidden_scale: float,
        images: int = 1,
        dropout: float = 0.0,
    ) -> None:
        """The head is ``hidden_scale`` times as wide inside as one pair's vector; ``dropout`` comes before it."""
        super().__init__(cfg, model, names)
        width = model.fused_width
        self.dropout = nn.Dropout(dropout)
        self.classifier = ClassificationHead(images * width, round(width * hidden_scale), len(names))

    def logits(self, batch: QuestionBatch) -> Tensor:
        """Return (B, C) float32; the text is embedded once, whatever the number of images."""
        text = self.model.embed_text(batch["ids"], batch["mask"])
        no_states = batch["ids"].new_zeros(len(text), 0)
        pairs = [
            self.model.fuse(self.model.embed_image(images, slot), text, positions=no_states).pooled
            for slot, images in enumerate(batch["images"].unbind(1))
        ]
        return self.classifier(self.dropout(torch.cat(pairs, dim=1))).float()
