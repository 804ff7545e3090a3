"""Visual question answering as classification over frequent answers (VLMo, appendix C; BridgeTower, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse.data.loader import Batch, Example
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.runner import Plan
from dualfuse.metrics.base import MetricInfo, shares
from dualfuse.metrics.vqa import AnswerScore, accuracy, soft_scores
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import TaskOutput
from dualfuse.tasks.finetune.classification import PairClassification
from dualfuse.tasks.finetune.questions import Names, QuestionConfig, QuestionExample, read_question


@dataclass(frozen=True)
class VQAConfig(QuestionConfig):
    """Answer vocabulary and head; the defaults are those of VQAv2.

    A sample has one question as its text, so that all questions are trained equally often. Its json holds "answers"
    of annotators, or "answer", a single one (Visual Genome); "id" is the question's identifier, "answer_type" its
    type. Answers are compared with the vocabulary after both are normalised, as in BridgeTower's corrected tables;
    VLMo and METER compared raw answers with a normalised vocabulary, which lost 0.1 % of the questions.
    """

    pipeline_tag: ClassVar[str] = "visual-question-answering"
    example: ClassVar[str] = 'print(predict(model, image="a.jpg", text="what colour is the car?"))'

    num_answers: int = 3129
    """Number of answers if ``answers`` is empty, as in converted checkpoints: they are named 0, 1, 2, ..."""
    answers: Names = ()
    """Normalised answers, in the order of their indices; needed for training."""
    hidden_scale: float = 2.0
    """Width of the head's hidden layer, as a multiple of the width of a pooled state."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the answers."""
        return self.answers or tuple(map(str, range(self.num_answers)))

    @cached_property
    def index(self) -> dict[str, int]:
        """Index of each answer."""
        return {answer: index for index, answer in enumerate(self.answers)}

    def read_question(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> QuestionExample:
        """Read image, question and annotators' answers, in the vocabulary or not."""
        return read_question(sample, annotated_answers(sample), processor, rng)

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Example:
        """Read image, question and scores (answers,); ``BrokenSample`` if no answer is in the vocabulary.

        The published training sets exclude such questions, too.
        """
        if not self.answers:
            raise DualfuseError("VQA needs an answer vocabulary: give --task.answers FILE, one answer per line")
        answers = annotated_answers(sample)
        if (target := self.scores(answers)) is None:
            raise BrokenSample(sample.key, f"none of its answers is in the vocabulary: {answers or 'it has none'}")
        return {**read_question(sample, answers, processor, rng), "target": target}

    def scores(self, answers: Sequence[str]) -> Tensor | None:
        """Return the soft score (answers,) of each answer of the vocabulary; None if annotators gave none of them."""
        scores = {answer: score for answer, score in soft_scores(answers).items() if answer in self.index}
        if not scores:
            return None
        target = torch.zeros(len(self.answers), dtype=torch.float32)
        for answer, score in scores.items():
            target[self.index[answer]] = score
        return target

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare accuracies, and the score without leave-one-out."""
        return (*super().metrics(plan), *shares("score"))

    def build(self, model: VisionLanguageModel) -> VQA:
        """Return the task with a fresh head."""
        return VQA(self, model)


def annotated_answers(sample: Sample) -> tuple[str, ...]:
    """Return the answers in the json of a sample; empty in a test set."""
    value = sample.meta.get("answers", sample.meta.get("answer", ()))
    answers = (value,) if isinstance(value, str) else value
    if not isinstance(answers, list | tuple) or not all(isinstance(answer, str) for answer in answers):
        raise BrokenSample(sample.key, f'its "answers" are {value!r}; a list of strings is needed')
    return tuple(answers)


class VQA(PairClassification):
    """Scores every answer independently, by the degree to which annotators agree on it."""

    metric = AnswerScore

    def __init__(self, cfg: VQAConfig, model: VisionLanguageModel) -> None:
        """Build the head for all answers."""
        super().__init__(cfg, model, cfg.names, hidden_scale=cfg.hidden_scale)

    def loss(self, logits: Tensor, target: Tensor) -> TaskOutput:
        """Return the binary cross-entropy, summed over answers and averaged over questions; log the soft score."""
        loss = F.binary_cross_entropy_with_logits(logits, target) * target.shape[1]
        score = target.gather(1, logits.argmax(1, keepdim=True)).mean()
        return TaskOutput(loss, {"loss": loss.detach(), "accuracy": score})

    def sample_accuracy(self, answer: str, target: Sequence[str]) -> float | None:
        """Return the official accuracy of VQA."""
        return accuracy(answer, target)

    def sample_loss(self, probabilities: Tensor, target: Sequence[str]) -> float | None:
        """Return the binary cross-entropy, summed over answers; None if no annotated answer is in the vocabulary."""
        assert isinstance(self.cfg, VQAConfig)
        if (wanted := self.cfg.scores(target)) is None:
            return None
        return float(F.binary_cross_entropy(probabilities.float(), wanted.to(probabilities.device), reduction="sum"))

    def probabilities(self, batch: Batch) -> Tensor:
        """Return the independent probability (B, C) of each answer; rows need not add up to one."""
        return self.logits(batch).sigmoid()
