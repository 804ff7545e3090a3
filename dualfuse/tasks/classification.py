"""Answers with one of several names: what all such tasks share, and those with a text about one or more pictures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NotRequired, Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.data.loader import Batch, Row
from dualfuse.data.padding import pad_texts
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.answered import Accuracy, Asked, Metric
from dualfuse.tasks.base import Output, Prep, Task
from dualfuse.tasks.heads import Classifier

SHOWN = 20  # names of labels; their number is always told


class QuestionRow(TypedDict):
    """Pictures (P, 3, H, W) and one text (T,), who asked; and to be learnt its ``target``: a number, or scores (C,)."""

    images: Tensor
    ids: np.ndarray
    asked: Asked
    target: NotRequired[Tensor]


class QuestionBatch(TypedDict):
    """B questions: images (B, P, 3, H, W); ids, mask (B, T).

    To be learnt they come with ``target``, label numbers (B,) or scores (B, C); to be answered, with who ``asked``.
    """

    images: Tensor
    ids: Tensor
    mask: Tensor
    target: NotRequired[Tensor]
    asked: NotRequired[tuple[Asked, ...]]


class QuestionConfig(Protocol):
    """The config of a task that answers: it also reads what is only to be answered."""

    def ask(self, sample: Sample, prep: Prep, rng: np.random.Generator) -> Row:
        """Turns a sample into a row with who "asked" and without target, whether or not its answer is known."""
        ...

    def collate(self, rows: Sequence[Any]) -> Batch:  # Any: what ask gives
        """Puts rows together to a batch; "asked" is a tuple."""
        ...


def question(
    sample: Sample, truth: tuple[str, ...], prep: Prep, rng: np.random.Generator, pictures: int = 1
) -> QuestionRow:
    """Gives the first ``pictures``, each varied by itself, and the text; ``BrokenSample`` if one is missing."""
    if len(sample.texts) != 1:
        raise BrokenSample(sample.key, f"it has {len(sample.texts)} texts; one is needed, so write a sample for each")
    if 1 + len(sample.others) < pictures:
        raise BrokenSample(sample.key, f"it has {1 + len(sample.others)} pictures of the {pictures} that are compared")
    images = [prep.image(picture, rng) for picture in (sample.image, *sample.others)[:pictures]]
    return {
        "images": torch.stack(images),
        "ids": prep.text.encode(sample.texts[0]).ids,
        "asked": who_asked(sample, truth),
    }


def who_asked(sample: Sample, truth: tuple[str, ...]) -> Asked:
    """Gives what is known of a sample's question and its right answer; the text may be missing."""
    name = sample.meta.get("id", sample.key)
    if not isinstance(name, str | int):
        raise BrokenSample(sample.key, f'its "id" is a {type(name).__name__}; a string or a number is needed')
    return Asked(sample.key, name, "".join(sample.texts[:1]), truth, str(sample.meta.get("answer_type", "")))


def label_of(sample: Sample, labels: Sequence[str]) -> tuple[str, ...]:
    """Gives the label in the sample's json, by name or number, or none; ``BrokenSample`` if it is not of ``labels``."""
    label = sample.meta.get("label")
    if label is None:
        return ()
    if str(label) in labels:
        return (str(label),)
    if isinstance(label, int) and 0 <= label < len(labels):
        return (labels[label],)
    known = ", ".join(labels[:SHOWN]) + (f" and {len(labels) - SHOWN:,} more" if len(labels) > SHOWN else "")
    raise BrokenSample(sample.key, f"its label is {label!r}; the task knows {known}, or their numbers")


def with_label(row: QuestionRow, labels: Sequence[str]) -> QuestionRow:
    """Gives a row to learn from; ``BrokenSample`` if its label is not known."""
    asked = row["asked"]
    if not asked.truth:
        raise BrokenSample(asked.key, 'it has no "label" in its json')
    return with_target(row, torch.tensor(labels.index(asked.truth[0])))


def with_target(row: QuestionRow, target: Tensor) -> QuestionRow:
    """Gives a row to learn from."""
    learnt = row.copy()
    learnt["target"] = target
    return learnt


def together(rows: Sequence[QuestionRow]) -> QuestionBatch:
    """Makes a batch of rows that are all to be learnt or all to be answered; texts are padded to the longest."""
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

    ranked = 1
    """How many of the best names :meth:`metric` looks at."""

    def __init__(self, cfg: QuestionConfig, model: VisionLanguageModel, names: tuple[str, ...]) -> None:
        """What answers is built by the tasks."""
        super().__init__()
        self.cfg, self.model, self.names = cfg, model, names

    @abstractmethod
    def logits(self, batch: Any) -> Tensor:  # Any: what its config's collate gives
        """Gives (B, C) float32."""

    def forward(self, batch: Any) -> Output:  # Any: what its config's collate gives
        """Learns from targets."""
        assert "target" in batch, "a batch of ask() has no targets to learn from"
        return self.learn(self.logits(batch), batch["target"])

    def learn(self, logits: Tensor, target: Tensor) -> Output:
        """Gives the cross-entropy of logits (B, C) against the numbers (B,) of the right names."""
        loss = F.cross_entropy(logits, target)
        right = (logits.argmax(1) == target).float().mean()
        return Output(loss, {"loss": loss.detach(), "accuracy": right})

    def predict(self, batch: Any) -> Tensor:  # Any: what its config's collate gives
        """Gives the probability (B, C) of each name."""
        return self.logits(batch).softmax(1)

    def metric(self) -> Metric:
        """Gives a fresh counter of what is right."""
        return Accuracy()


class PairClassification(Classification):
    """Fuses each picture with the text, and classifies what stands for all pairs."""

    def __init__(
        self,
        cfg: QuestionConfig,
        model: VisionLanguageModel,
        names: tuple[str, ...],
        *,
        hidden_scale: float,
        pictures: int = 1,
        dropout: float = 0.0,
    ) -> None:
        """The head is ``hidden_scale`` times as wide inside as one pair's vector; ``dropout`` comes before it."""
        super().__init__(cfg, model, names)
        width = model.fused_width
        self.dropout = nn.Dropout(dropout)
        self.classifier = Classifier(pictures * width, round(width * hidden_scale), len(names))

    def logits(self, batch: QuestionBatch) -> Tensor:
        """Gives (B, C) float32; the text is embedded once, whatever the number of pictures."""
        text = self.model.embed_text(batch["ids"], batch["mask"])
        no_states = batch["ids"].new_zeros(len(text), 0)
        pairs = [
            self.model.fuse(self.model.embed_image(images, slot), text, rows=no_states).pooled
            for slot, images in enumerate(batch["images"].unbind(1))
        ]
        return self.classifier(self.dropout(torch.cat(pairs, dim=1))).float()
