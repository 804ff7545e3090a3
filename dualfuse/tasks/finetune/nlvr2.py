"""NLVR2: is a sentence true of two images?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dualfuse.evaluation.runner import Plan
from dualfuse.metrics.accuracy import Consistency
from dualfuse.metrics.base import MetricInfo, shares
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.finetune.classification import PairClassification
from dualfuse.tasks.finetune.questions import PairQuestionConfig


@dataclass(frozen=True)
class NLVR2Config(PairQuestionConfig):
    """Labels and head; the defaults are those of NLVR2 in VLMo.

    A sample has two images (KEY.jpg and KEY.1.jpg), one text, and in its json a "label", by name or index; "id" is
    NLVR2's identifier. The model needs an embedding for each of the two images: ``image_slots=2``.
    """

    num_images: ClassVar[int] = 2
    example: ClassVar[str] = 'print(predict(model, image=("a.jpg", "b.jpg"), text="both are red"))'

    labels: tuple[str, ...] = ("False", "True")
    """Names of the classes, in the order of their indices."""
    hidden_scale: float = 2.0
    """Width of the head's hidden layer, as a multiple of the width of one pooled state; BridgeTower: 1.5."""
    dropout: float = 0.0
    """Dropout probability before the head; BridgeTower: 0.1."""

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare accuracies and consistency."""
        return (*super().metrics(plan), *shares("consistency"))

    def build(self, model: VisionLanguageModel) -> NLVR2:
        """Return the task with a fresh head."""
        return NLVR2(self, model)


class NLVR2(PairClassification):
    """Fuses the text with each image, and classifies both pooled states together."""

    metric = Consistency

    def __init__(self, cfg: NLVR2Config, model: VisionLanguageModel) -> None:
        """Build the head for two pooled states."""
        super().__init__(cfg, model, cfg.labels, hidden_scale=cfg.hidden_scale, images=2, dropout=cfg.dropout)
