"""NLVR2: is a sentence true of two images?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.metrics.accuracy import Accuracy, Question
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import Processor
from dualfuse.tasks.finetune.classification import (
    PairClassification,
    QuestionBatch,
    QuestionExample,
    collate_questions,
    label_of,
    read_question,
    with_label,
)

IDENTIFIER = re.compile(r"(?P<split>[^-]+)-(?P<set>\d+)-(?P<pair>\d+)-(?P<sentence>\d+)")


@dataclass(frozen=True)
class NLVR2Config:
    """What is told apart of two images and a text; the defaults are those of NLVR2 in VLMo.

    A sample has two images (KEY.jpg and KEY.1.jpg), one text, and in its json a "label", by name or number; "id" is
    NLVR2's identifier. The model needs a type for each image: ``image_slots=2``.
    """

    labels: tuple[str, ...] = ("False", "True")
    """Names of the classes, in the order of their numbers."""
    hidden_scale: float = 2.0
    """Width inside the head, in parts of one fused vector's; BridgeTower's is 1.5."""
    dropout: float = 0.0
    """Before the head; BridgeTower's is 0.1."""

    def __post_init__(self) -> None:
        """Refuse labels that cannot be told apart."""
        if len(set(self.labels)) < max(2, len(self.labels)):
            raise DualfuseError(f"labels are {self.labels}; give two or more different names")

    def read_question(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> QuestionExample:
        """Read both images and the text, and the label if there is one."""
        return read_question(sample, label_of(sample, self.labels), processor, rng, num_images=2)

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> QuestionExample:
        """Read both images, text and label; a flip of one image is none of the other, as published."""
        return with_label(self.read_question(sample, processor, rng), self.labels)

    def collate(self, rows: Sequence[QuestionExample]) -> QuestionBatch:
        """Pad the texts to the longest of them."""
        return collate_questions(rows)

    def build(self, model: VisionLanguageModel) -> NLVR2:
        """Return the task with a fresh head."""
        return NLVR2(self, model)


class NLVR2(PairClassification):
    """The text with the first image, the text with the second one, and a head on both vectors side by side."""

    def __init__(self, cfg: NLVR2Config, model: VisionLanguageModel) -> None:
        """Build the head for two fused vectors."""
        super().__init__(cfg, model, cfg.labels, hidden_scale=cfg.hidden_scale, images=2, dropout=cfg.dropout)

    def metric(self) -> Consistency:
        """Return a counter of what is right, and of sentences that are right with all their images."""
        return Consistency()


class Consistency(Accuracy):
    """Accuracy, and the share of sentences that were judged right with every pair of images they were asked of."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        super().__init__()
        self._always: dict[tuple[str, ...], bool] = {}

    def add(self, asked: Question, answers: Sequence[str]) -> None:
        """Count the best answer."""
        super().add(asked, answers)
        sentence = sentence_of(asked)
        self._always[sentence] = self._always.get(sentence, True) and (answers[0],) == asked.target

    def result(self) -> dict[str, float]:
        """Return what accuracy gives, and "consistency"."""
        always = {"consistency": sum(self._always.values()) / len(self._always)} if self._always else {}
        return super().result() | always


def sentence_of(asked: Question) -> tuple[str, ...]:
    """Return what all questions with one sentence share: NLVR2's identifier without the number of the pair.

    Its identifiers are SPLIT-SET-PAIR-SENTENCE; where they look otherwise, the sentence itself.
    """
    match = IDENTIFIER.fullmatch(str(asked.id))
    return match.group("split", "set", "sentence") if match else (asked.text,)
