"""Does an image entail a text (SNLI-VE)? And any other classification of (image, text) into named labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
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
        """Refuse labels that cannot be told apart."""
        if len(set(self.labels)) < max(2, len(self.labels)):
            raise DualfuseError(f"labels are {self.labels}; give two or more different names")

    def read_question(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> QuestionExample:
        """Read image and text, and the label if there is one."""
        return read_question(sample, label_of(sample, self.labels), processor, rng)

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> QuestionExample:
        """Read image, text and label."""
        return with_label(self.read_question(sample, processor, rng), self.labels)

    def collate(self, rows: Sequence[QuestionExample]) -> QuestionBatch:
        """Pad the texts to the longest of them."""
        return collate_questions(rows)

    def build(self, model: VisionLanguageModel) -> PairClassification:
        """Return the task with a fresh head."""
        return PairClassification(self, model, self.labels, hidden_scale=self.hidden_scale)
