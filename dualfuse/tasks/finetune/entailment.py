"""Visual entailment (SNLI-VE), and any other classification of an image and a text into named labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.finetune.classification import PairClassification
from dualfuse.tasks.finetune.questions import PairQuestionConfig


@dataclass(frozen=True)
class EntailmentConfig(PairQuestionConfig):
    """Labels and head; the defaults are those of SNLI-VE in METER and BridgeTower.

    A sample has one text, and in its json a "label", by name or index; "id" goes into the file of predictions.
    """

    example: ClassVar[str] = 'print(predict(model, image="a.jpg", text="a red apple on a table"))'

    labels: tuple[str, ...] = ("contradiction", "neutral", "entailment")
    """Names of the classes, in the order of their indices."""
    hidden_scale: float = 2.0
    """Width of the head's hidden layer, as a multiple of the width of a pooled state."""

    def build(self, model: VisionLanguageModel) -> PairClassification:
        """Return the task with a fresh head."""
        return PairClassification(self, model, self.labels, hidden_scale=self.hidden_scale)
