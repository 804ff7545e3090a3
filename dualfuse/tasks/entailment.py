"""Does a picture entail a text (SNLI-VE)? And any other classification of (picture, text) into named labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dualfuse.data.sample import Sample
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import Prep
from dualfuse.tasks.classification import (
    PairClassification,
    QuestionBatch,
    QuestionRow,
    label_of,
    question,
    together,
    with_label,
)


@dataclass(frozen=True)
class EntailmentConfig:
    """What is told apart; the defaults are those of SNLI-VE in METER and BridgeTower.

    A sample has one text, and in its json a "label", by name or number; "id" goes into what is written.
    """

    labels: tuple[str, ...] = ("contradiction", "neutral", "entailment")
    """Names of the classes, in the order of their numbers."""
    hidden_scale: float = 2.0
    """Width inside the head, in parts of the fused vector's."""

    def __post_init__(self) -> None:
        """Refuses labels that cannot be told apart."""
        if len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError(f"labels are {self.labels}; give two or more different names")

    def ask(self, sample: Sample, prep: Prep, rng: np.random.Generator) -> QuestionRow:
        """Reads picture and text, and the label if there is one."""
        return question(sample, label_of(sample, self.labels), prep, rng)

    def read(self, sample: Sample, prep: Prep, rng: np.random.Generator) -> QuestionRow:
        """Reads picture, text and label."""
        return with_label(self.ask(sample, prep, rng), self.labels)

    def collate(self, rows: Sequence[QuestionRow]) -> QuestionBatch:
        """Pads the texts to the longest of them."""
        return together(rows)

    def build(self, model: VisionLanguageModel) -> PairClassification:
        """Gives the task with a fresh head."""
        return PairClassification(self, model, self.labels, hidden_scale=self.hidden_scale)
