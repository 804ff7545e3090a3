"""Tasks that answer with one of several names, and those that read a text beside one or more images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.data.loader import Batch, Example, to_device
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.predictions import PredictedAnswer
from dualfuse.evaluation.runner import Evaluation, EvaluationData, EvaluationResult, Plan
from dualfuse.layers.heads import ClassificationHead
from dualfuse.metrics.accuracy import Accuracy, Metric, Question
from dualfuse.models.base import Fused, VisionLanguageModel, check_fusion
from dualfuse.tasks.base import Task, TaskOutput
from dualfuse.tasks.finetune.questions import QuestionConfig
from dualfuse.tasks.prediction import Prediction, ScoredAnswer, check_images, text_of


class Classification(Task):
    """Answers with one of ``names``."""

    cfg: QuestionConfig
    writes_predictions = True
    top_k = 1
    """The number of best names that ``metric`` needs."""
    metric: ClassVar[type[Metric]] = Accuracy

    def __init__(self, cfg: QuestionConfig, model: VisionLanguageModel, names: tuple[str, ...]) -> None:
        """Store the parts; subclasses build the head."""
        super().__init__()
        self.cfg, self.model, self.names = cfg, model, names

    @abstractmethod
    def logits(self, batch: Any) -> Tensor:  # Any: what its config's collate returns
        """Return logits (B, C) in float32."""

    def forward(self, batch: Any) -> TaskOutput:  # Any: what its config's collate returns
        """Return the loss of a batch with targets."""
        assert "target" in batch, "a batch of read_question() has no targets"
        return self.loss(self.logits(batch), batch["target"])

    def loss(self, logits: Tensor, target: Tensor) -> TaskOutput:
        """Return the cross-entropy of logits (B, C) and class indices (B,)."""
        loss = F.cross_entropy(logits, target)
        accuracy = (logits.argmax(1) == target).float().mean()
        return TaskOutput(loss, {"loss": loss.detach(), "accuracy": accuracy})

    def new_metric(self) -> Metric:
        """Return the numbers of an evaluation, before the first question."""
        return self.metric()

    def probabilities(self, batch: Any) -> Tensor:  # Any: what its config's collate returns
        """Return the probability (B, C) of each name."""
        return self.logits(batch).softmax(1)

    @torch.inference_mode()
    def evaluate(self, data: EvaluationData, plan: Plan) -> EvaluationResult:
        """Answer every sample, and compute the numbers of ``metric`` over labelled ones.

        An unlabelled set, such as a test set, gives predictions and no metrics. Annotators' answers beyond the task's
        vocabulary count: no prediction can match them.
        """
        run = Evaluation(self, data, plan)
        metric, predictions, labelled = self.new_metric(), list[PredictedAnswer](), 0
        for batch in run.batches(self.cfg.read_question, self.cfg.collate, what="questions"):
            probabilities = self.probabilities(batch)
            best = self._best(probabilities, self.top_k)
            for question, answers, row in zip(batch["questions"], best, probabilities, strict=True):
                predictions.append(self._predicted(question, answers, row if plan.answers else None))
                if question.target:
                    metric.add(question, [each.answer for each in answers])
                    labelled += 1
        size = f"{len(predictions)} questions, {labelled} of them labelled"
        return run.result(metric.result(), size, predictions)

    def read_input(self, sample: Sample, processor: Processor) -> Example:
        """Read an image, and no text."""
        check_images(sample)
        if sample.texts:
            raise DualfuseError("this model takes an image alone; omit the text")
        return self.cfg.read_question(sample, processor, np.random.default_rng(0))

    def predict(self, inputs: Sequence[Any], processor: Processor, top: int) -> list[Prediction]:
        """Return the most probable names."""
        batch = to_device(self.cfg.collate(inputs), self.device)
        return [
            Prediction(answers, is_cut=processor.text.encode(example["question"].text).truncated)
            for example, answers in zip(inputs, self._best(self.probabilities(batch), top), strict=True)
        ]

    def sample_loss(self, probabilities: Tensor, target: Sequence[str]) -> float | None:
        """Return the cross-entropy, in nats, of the target of one sample; None if it is not among the names.

        ``probabilities`` (C,) are those of :meth:`probabilities`.
        """
        [name] = target
        smallest = torch.finfo(torch.float32).tiny
        return -float(probabilities[self.names.index(name)].clamp(min=smallest).log()) if name in self.names else None

    def sample_accuracy(self, answer: str, target: Sequence[str]) -> float | None:
        """Return the accuracy, from 0 to 1, of an answer to one sample."""
        return float(answer == target[0])

    def _predicted(
        self, question: Question, answers: Sequence[ScoredAnswer], probabilities: Tensor | None
    ) -> PredictedAnswer:
        """Return the best answer; with ``probabilities`` (C,) also its accuracy and the loss."""
        best = PredictedAnswer(question.key, question.id, answers[0].answer, answers[0].probability)
        if probabilities is None or not question.target:
            return best
        correct = self.sample_accuracy(best.answer, question.target)
        loss = self.sample_loss(probabilities, question.target)
        return replace(best, target=question.target, correct=correct, loss=loss)

    def _best(self, probabilities: Tensor, top: int) -> list[tuple[ScoredAnswer, ...]]:
        best = probabilities.topk(min(top, len(self.names)), dim=1)
        return [
            tuple(ScoredAnswer(self.names[index], value) for value, index in zip(values, indices, strict=True))
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


class PairClassification(Classification):
    """Fuses each image with the text, and classifies the concatenated pooled states."""

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
        """The hidden layer of the head has ``hidden_scale`` times the width of one pooled state."""
        super().__init__(cfg, model, names)
        check_fusion(model)
        self.images, width = images, model.fused_width
        self.dropout = nn.Dropout(dropout)
        self.classifier = ClassificationHead(images * width, round(width * hidden_scale), len(names))

    def logits(self, batch: Batch) -> Tensor:
        """Return logits (B, C) in float32 of images (B, P, 3, H, W) and ids, mask (B, T), which are embedded once."""
        text = self.model.embed_text(batch["ids"], batch["mask"])
        no_states = batch["ids"].new_zeros(len(text), 0)
        pairs = [
            self.model.fuse(self.model.embed_image(images, slot), text, positions=no_states).pooled
            for slot, images in enumerate(batch["images"].unbind(1))
        ]
        return self.classifier(self.dropout(torch.cat(pairs, dim=1))).float()

    def read_input(self, sample: Sample, processor: Processor) -> Example:
        """Read the images and the text."""
        check_images(sample, self.images)
        text_of(sample)
        return self.cfg.read_question(sample, processor, np.random.default_rng(0))

    def explained_logit(self, fused: Sequence[Fused]) -> tuple[str, Tensor]:
        """Return the best answer and its logit."""
        logits = self.classifier(torch.cat([each.pooled for each in fused], dim=1))[0]
        best = int(logits.argmax())
        return self.names[best], logits[best]
