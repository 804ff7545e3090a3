"""Answers, judged and written: every task that answers with a name, on every sample of a set."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dualfuse.data.loader import Example, Skipped, evaluation_batches
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.retrieval import Plan
from dualfuse.io import atomic_write, write_json, write_text
from dualfuse.progress import track
from dualfuse.tasks.base import Processor
from dualfuse.tasks.finetune.classification import Classification, QuestionConfig
from dualfuse.training.prefetch import to_device


@dataclass(frozen=True)
class PredictedAnswer:
    """What a task says of one sample."""

    key: str
    id: str | int
    """How the data set calls the question."""
    answer: str
    probability: float
    """Of this answer."""


@dataclass(frozen=True)
class AnswerResult:
    """Shares of one by name, the answers in file order, how many of them could be judged, and what was left out."""

    metrics: dict[str, float]
    answers: tuple[PredictedAnswer, ...]
    labelled: int
    excluded: tuple[Skipped, ...]


@torch.inference_mode()
def evaluate_answers(task: Classification, processor: Processor, shards: Shards, plan: Plan) -> AnswerResult:
    """Answer every sample of ``shards``, and judges the answers whose truth is known.

    A set of which no truth is known, such as a test set, gives answers and no metrics. A sample that cannot be read
    raises ``BrokenSample``, or is left out and reported with ``plan.exclude_broken``. What people answered beyond the
    task's vocabulary is no reason to leave a question out: it counts, and its answer is wrong.
    """
    if task.training:
        raise DualfuseError("the task is in training mode; call eval() on it before it is judged")
    device = next(task.parameters()).device
    loaded_batches = evaluation_batches(
        shards,
        partial(_ask, task.cfg, processor),
        task.cfg.collate,
        batch_size=plan.batch_size,
        num_workers=plan.num_workers,
        exclude_broken=plan.exclude_broken,
    )
    metric, answers, excluded, evaluated = task.metric(), list[PredictedAnswer](), list[Skipped](), 0
    for loaded_batch in track(loaded_batches, total=-(-len(shards) // plan.batch_size), what="questions"):
        excluded += loaded_batch.skipped
        best = task.probabilities(to_device(loaded_batch.batch, device)).topk(min(task.top_k, len(task.names)), dim=1)
        for asked, probabilities, numbers in zip(
            loaded_batch.batch["asked"], best.values.tolist(), best.indices.tolist(), strict=True
        ):
            names = [task.names[number] for number in numbers]
            answers.append(PredictedAnswer(asked.key, asked.id, names[0], probabilities[0]))
            if asked.target:
                metric.add(asked, names)
                evaluated += 1
    return AnswerResult(metric.result(), tuple(answers), evaluated, tuple(excluded))


def _ask(cfg: QuestionConfig, processor: Processor, sample: Sample, rng: np.random.Generator) -> Example:
    return cfg.read_question(sample, processor, rng)


def write_answers(answers: Sequence[PredictedAnswer], path: Path) -> None:
    """Write answers in the form that the ending of ``path`` says.

    ".json": VQA's list of {"question_id", "answer"}, for its server. ".csv": NLVR2's lines IDENTIFIER,ANSWER.
    ".jsonl": one object a line, with key and probability. ``DualfuseError`` for another ending, and where a server would
    refuse: two answers of one id, or for VQA an id that is no number.
    """
    forms = {".json": _vqa, ".csv": _nlvr2, ".jsonl": _lines}
    if path.suffix not in forms:
        raise DualfuseError(f"{path} should end in {', '.join(forms)}: VQA's form, NLVR2's, or all that is known")
    forms[path.suffix](answers, path)


def _vqa(answers: Sequence[PredictedAnswer], path: Path) -> None:
    _refuse_twice(answers)
    if strange := [answer.id for answer in answers if not isinstance(answer.id, int)]:
        raise DualfuseError(
            f'VQA\'s question ids are numbers, not like {strange[0]!r}: samples need an "id" in their json'
        )
    listed = [{"question_id": answer.id, "answer": answer.answer} for answer in answers]
    write_json(path, listed, indent=None)


def _nlvr2(answers: Sequence[PredictedAnswer], path: Path) -> None:
    _refuse_twice(answers)
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows((answer.id, answer.answer) for answer in answers)


def _lines(answers: Sequence[PredictedAnswer], path: Path) -> None:
    lines = (json.dumps(vars(answer), ensure_ascii=False) for answer in answers)
    write_text(path, "".join(f"{line}\n" for line in lines))


def _refuse_twice(answers: Sequence[PredictedAnswer]) -> None:
    twice = [name for name, count in Counter(answer.id for answer in answers).items() if count > 1]
    if twice:
        raise DualfuseError(
            f"{len(twice)} questions are answered more than once, such as {twice[0]!r}; look at the shards"
        )
