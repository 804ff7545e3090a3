"""Classification of a sentence or of a pair of sentences by the text encoder alone: GLUE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.data.loader import Example
from dualfuse.data.map_dataset import MapDataset
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.labeled import LabeledTexts
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.runner import Plan
from dualfuse.layers.heads import init_linear
from dualfuse.metrics.accuracy import Metric
from dualfuse.metrics.base import MetricInfo, shares
from dualfuse.metrics.text_labels import LabelMetrics, ScoreMetrics
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import TaskOutput
from dualfuse.tasks.finetune.classification import Classification
from dualfuse.tasks.finetune.questions import (
    ClassesConfig,
    Names,
    QuestionConfig,
    check_names,
    label_of,
    question_of,
    with_label,
)
from dualfuse.tasks.prediction import ScoredAnswer, text_of

PAIR = 2
"""Number of texts of a pair."""


@dataclass(frozen=True)
class TextClassificationConfig(ClassesConfig, QuestionConfig):
    """Labels and head; the defaults are those of RoBERTa on GLUE.

    Training data are the published tables of GLUE, or tables with their columns (``sentence1``, ``sentence2``,
    ``label``); images are not read. A pair is encoded as RoBERTa and BERT do. With ``num_classes`` 1 the label is a
    number, which is regressed (STS-B).
    """

    training_data: ClassVar[str] = "FILES (the .tsv of a GLUE task, or a .jsonl with sentence1, sentence2, label)"
    pipeline_tag: ClassVar[str] = "text-classification"
    example: ClassVar[str] = 'print(predict(model, text="a first sentence\\ta second one"))'

    num_classes: int = 2
    """Number of classes if ``labels`` is empty: they are named 0, 1, 2, ...; 1: the label is a number."""
    labels: Names = ()
    """Names of the classes, in the order of their indices."""
    dropout: float = 0.1
    """Dropout probability before both layers of the head."""

    def __post_init__(self) -> None:
        """Validate the classes and the dropout."""
        if not self.is_regression:
            check_names(self.names)
        if not 0 <= self.dropout < 1:
            raise DualfuseError(f"dropout is {self.dropout}; it should be at least 0 and below 1")

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers."""
        return self.num_classes == 1 and not self.labels

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare the metrics of GLUE."""
        if self.is_regression:
            correlations = (MetricInfo(name, whole_set=True) for name in ("pearson", "spearman"))
            return (*correlations, MetricInfo("mse", higher_is_better=False))
        matthews = MetricInfo("matthews_correlation", whole_set=True)
        return (*shares("accuracy"), *shares("f1", whole_set=True), matthews)

    def read_question(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Example:
        """Read the text or the pair, and the label if there is one."""
        if not 1 <= len(sample.texts) <= PAIR:
            raise BrokenSample(sample.key, f"it has {len(sample.texts)} texts; one or two are needed")
        target = _score_of(sample) if self.is_regression else label_of(sample, self.names)
        question = replace(question_of(sample, target), text="\t".join(sample.texts))
        return {"ids": processor.text.encode_pair(sample.texts), "question": question}

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Example:
        """Read text and label; ``BrokenSample`` without a label."""
        example = self.read_question(sample, processor, rng)
        if not self.is_regression:
            return with_label(example, self.names)
        if not example["question"].target:
            raise BrokenSample(sample.key, "it has no label")
        return {**example, "target": torch.tensor(float(example["question"].target[0]))}

    def open_data(self, sources: Sequence[str], text: TextTransform) -> tuple[MapDataset, ...]:
        """Open tables."""
        return tuple(LabeledTexts.open(source) for source in sources)

    def build(self, model: VisionLanguageModel) -> TextClassification:
        """Return the task with a fresh head."""
        return TextClassification(self, model)


def _score_of(sample: Sample) -> tuple[str, ...]:
    label = sample.meta.get("label")
    if label is None:
        return ()
    try:
        return (repr(float(str(label))),)
    except ValueError:
        raise BrokenSample(sample.key, f"its label is {label!r}; a number is needed") from None


class TextClassification(Classification):
    """RoBERTa's head on the state of the first token: dropout, dense layer, tanh, dropout, linear layer."""

    def __init__(self, cfg: TextClassificationConfig, model: VisionLanguageModel) -> None:
        """Build the head as wide as the text encoder."""
        super().__init__(cfg, model, cfg.names)
        self.is_regression = cfg.is_regression
        width = model.encode_widths[1]
        self.dense, self.out = nn.Linear(width, width), nn.Linear(width, len(cfg.names))
        self.dropout = nn.Dropout(cfg.dropout)
        init_linear(self.dense)
        init_linear(self.out)

    def logits(self, batch: Any) -> Tensor:
        """Return logits (B, C) in float32 of ids and mask (B, T); (B, 1) for numbers."""
        state = self.model.encode(self.model.embed_text(batch["ids"], batch["mask"]))
        return self.out(self.dropout(self.dense(self.dropout(state)).tanh())).float()

    def loss(self, logits: Tensor, target: Tensor) -> TaskOutput:
        """Return the cross-entropy, or the mean squared error of numbers."""
        if not self.is_regression:
            return super().loss(logits, target)
        loss = F.mse_loss(logits[:, 0], target)
        return TaskOutput(loss, {"loss": loss.detach()})

    def new_metric(self) -> Metric:
        """Return the metrics of labels or of numbers."""
        return ScoreMetrics() if self.is_regression else LabelMetrics(self.names)

    def read_input(self, sample: Sample, processor: Processor) -> Example:
        """Read a text, or two that a tab separates; no image."""
        if sample.image:
            raise DualfuseError("this model takes a text alone; omit the image")
        parts = tuple(text_of(sample).split("\t")) if len(sample.texts) == 1 else sample.texts
        return self.cfg.read_question(replace(sample, texts=parts), processor, np.random.default_rng(0))

    def probabilities(self, batch: Any) -> Tensor:
        """Return the probability (B, C) of each name; of numbers the values (B, 1) themselves."""
        return self.logits(batch) if self.is_regression else super().probabilities(batch)

    def sample_accuracy(self, answer: str, target: Sequence[str]) -> float | None:
        """Return whether an answer is correct; None for numbers."""
        return None if self.is_regression else super().sample_accuracy(answer, target)

    def sample_loss(self, probabilities: Tensor, target: Sequence[str]) -> float | None:
        """Return the cross-entropy, or the squared error of a number."""
        if not self.is_regression:
            return super().sample_loss(probabilities, target)
        return (float(probabilities[0]) - float(target[0])) ** 2

    def _best(self, probabilities: Tensor, top: int) -> list[tuple[ScoredAnswer, ...]]:
        """Return the best names; of a number itself, with probability 1."""
        if not self.is_regression:
            return super()._best(probabilities, top)
        return [(ScoredAnswer(f"{value:.6g}", 1.0),) for value in probabilities[:, 0].tolist()]
