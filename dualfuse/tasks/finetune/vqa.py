"""Visual question answering as classification over frequent answers (VLMo, appendix C; BridgeTower, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tyro.constructors import PrimitiveConstructorSpec

from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.errors import DualfuseError
from dualfuse.metrics.accuracy import Metric
from dualfuse.metrics.vqa import AnswerScore, read_vocabulary, soft_scores
from dualfuse.models.base import VisionLanguageModel
from dualfuse.tasks.base import Processor, TaskOutput
from dualfuse.tasks.finetune.classification import (
    PairClassification,
    QuestionBatch,
    QuestionExample,
    collate_questions,
    read_question,
    with_target,
)

Vocabulary = Annotated[
    tuple[str, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="FILE",
        instance_from_str=lambda words: read_vocabulary(Path(words[0])),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda answers: [f"{len(answers)} answers"],
    ),
]
"""Answers, on the command line the file that holds them, one a line: so they travel in a model's config.json."""


@dataclass(frozen=True)
class VQAConfig:
    """Which answers are told apart; the defaults are those of VQAv2.

    A sample has one question as its text, so that all questions are trained equally often. Its json holds "answers",
    as people gave them, or "answer", one that is certain (Visual Genome's); "id" is the question's, "answer_type" its
    kind. Scores of answers are compared with the vocabulary after both are normalised, as BridgeTower's corrected
    tables; VLMo and METER compared raw answers with a normalised vocabulary, and lost 0.1 % of the questions.
    """

    num_answers: int = 3129
    """Number of answers where there is no vocabulary, as in converted checkpoints: they are called 0, 1, 2, ..."""
    answers: Vocabulary = ()
    """The answers in the order of their numbers, normalised; needed for training."""
    hidden_scale: float = 2.0
    """Width inside the head, in parts of the fused vector's."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the answers are called."""
        return self.answers or tuple(map(str, range(self.num_answers)))

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each answer of the vocabulary."""
        return {answer: number for number, answer in enumerate(self.answers)}

    def read_question(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> QuestionExample:
        """Read image and question, and what people answered, in the vocabulary or not."""
        return read_question(sample, given(sample), processor, rng)

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> QuestionExample:
        """Read image, question and scores (answers,); ``BrokenSample`` if no answer is in the vocabulary.

        Such questions teach nothing but that all answers are wrong, and were left out of the published training sets.
        """
        if not self.answers:
            raise DualfuseError("answers have no names to learn: give --task.vocabulary FILE, one answer a line")
        answers = given(sample)
        scores = {answer: score for answer, score in soft_scores(answers).items() if answer in self.numbers}
        if not scores:
            raise BrokenSample(sample.key, f"none of its answers is in the vocabulary: {answers or 'it has none'}")
        target = torch.zeros(len(self.answers))
        for answer, score in scores.items():
            target[self.numbers[answer]] = score
        return with_target(read_question(sample, answers, processor, rng), target)

    def collate(self, rows: Sequence[QuestionExample]) -> QuestionBatch:
        """Pad the questions to the longest of them."""
        return collate_questions(rows)

    def build(self, model: VisionLanguageModel) -> VQA:
        """Return the task with a fresh head."""
        return VQA(self, model)


def given(sample: Sample) -> tuple[str, ...]:
    """Return the answers in the sample's json; none in a test set."""
    answers = sample.meta.get("answers", sample.meta.get("answer", ()))
    found = (answers,) if isinstance(answers, str) else answers
    if not isinstance(found, list | tuple) or not all(isinstance(answer, str) for answer in found):
        raise BrokenSample(sample.key, f'its "answers" are {answers!r}; a list of strings is needed')
    return tuple(found)


class VQA(PairClassification):
    """Every answer is right or wrong by itself, and right to the degree that people agree on it."""

    def __init__(self, cfg: VQAConfig, model: VisionLanguageModel) -> None:
        """Build the head for all answers."""
        super().__init__(cfg, model, cfg.names, hidden_scale=cfg.hidden_scale)

    def loss(self, logits: Tensor, target: Tensor) -> TaskOutput:
        """Return the binary cross-entropy, summed over answers and averaged over questions; logs the soft score."""
        loss = F.binary_cross_entropy_with_logits(logits, target) * target.shape[1]
        score = target.gather(1, logits.argmax(1, keepdim=True)).mean()
        return TaskOutput(loss, {"loss": loss.detach(), "accuracy": score})

    def probabilities(self, batch: QuestionBatch) -> Tensor:
        """Return the probability (B, C) that each answer is right; they need not add up to one."""
        return self.logits(batch).sigmoid()

    def metric(self) -> Metric:
        """Return a fresh counter of the official accuracy."""
        return AnswerScore()
