"""What a model is judged by: what it was trained for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dualfuse.data.loader import Delivery, Row, Samples, Skipped, evaluation_batches
from dualfuse.data.sample import Sample
from dualfuse.data.shards import Shards
from dualfuse.engine.ahead import to_device
from dualfuse.engine.captions import Written, save_captions, write_all
from dualfuse.engine.evaluate import Plan, evaluate
from dualfuse.engine.every_pair import rank_recall
from dualfuse.engine.feed import open_sets
from dualfuse.engine.map_score import draw_maps, score_maps
from dualfuse.engine.pair_accuracy import pair_accuracy
from dualfuse.engine.progress import following
from dualfuse.engine.score import Answer, score, write_answers
from dualfuse.engine.word_accuracy import word_accuracy
from dualfuse.hub import Loaded
from dualfuse.tasks.base import Task
from dualfuse.tasks.captioning import Captioning
from dualfuse.tasks.classification import Classification
from dualfuse.tasks.codebook_sheet import codebook_sheet
from dualfuse.tasks.masked_text import MaskedText
from dualfuse.tasks.pairs import Pairs
from dualfuse.tasks.ranking import Ranking
from dualfuse.tasks.reconstruction import Reconstruct
from dualfuse.tasks.retrieval import can_retrieve, retriever
from dualfuse.tasks.segmentation import Segmentation

NO_SHARES = ("loss", "CIDEr-D")  # how numbers are called that are no shares of one
DRAWN = 256  # pictures whose codes are counted on a sheet


@dataclass(frozen=True)
class Judged:
    """Numbers by name, most of them shares of one; how many of what; what was left out; answers or captions."""

    metrics: dict[str, float]
    size: str
    excluded: tuple[Skipped, ...] = ()
    answers: tuple[Answer, ...] = ()
    captions: tuple[Written, ...] = ()
    by_class: dict[str, float] = field(default_factory=dict[str, float])
    """More shares, one for each of many classes: too many for the log of a run."""

    def write(self, path: Path) -> None:
        """Writes the answers or captions in the form that the ending of ``path`` says."""
        if self.captions:
            save_captions(self.captions, path)
        else:
            write_answers(self.answers, path)

    def lines(self) -> list[str]:
        """Gives what people read: a line for each number, and what was left out."""
        width = max(map(len, self.metrics), default=0)
        numbers = (
            f"{name:{width}}  {value:7.3f}" if name.endswith(NO_SHARES) else f"{name:{width}}  {100 * value:5.1f} %"
            for name, value in self.metrics.items()
        )
        excluded = (f"  excluded {skipped.key}: {skipped.reason}" for skipped in self.excluded)
        return [*numbers, f"{self.size}, {len(self.excluded)} excluded", *excluded]


def judge(model: Loaded, data: str, plan: Plan) -> Judged:
    """Judges a model in evaluation mode on ``data``, shards or, for one that learns from text alone, a text corpus.

    Retrieval for a task that learnt contrast, matching and words for one that learnt them alone, answers for one that
    answers; any other task by what it logs when it learns.
    """
    task, prep = model.task, model.prep
    if isinstance(task, MaskedText):
        texts = open_sets(model.recipe, (data,))[0]
        # lines that cannot be read are found, and told of, when the corpus is packed
        metrics = word_accuracy(task, prep, texts, replace(plan, exclude_broken=True))
        return Judged(metrics, f"{len(texts)} rows of text")
    shards = Shards.open(data)
    if isinstance(task, Classification):
        scored = score(task, prep, shards, plan)
        size = f"{len(scored.answers)} questions, {scored.judged} of them with a known answer"
        return Judged(scored.metrics, size, scored.excluded, scored.answers)
    if isinstance(task, Captioning):
        written = write_all(task, prep, shards, plan)
        size = f"{len(written.captions)} pictures, {written.judged} of them with captions of people"
        return Judged(written.metrics, size, written.excluded, captions=written.captions)
    if isinstance(task, Segmentation):
        mapped = score_maps(task, prep, shards, plan)
        size = f"{mapped.pictures} pictures, {mapped.pixels:,} pixels"
        return Judged(mapped.metrics, size, mapped.excluded, by_class=mapped.by_class)
    if isinstance(task, Pairs) and not task.can_search:
        return Judged(pair_accuracy(task, prep, shards, plan), f"{len(shards)} pairs")
    if can_retrieve(task):
        found = (rank_recall if isinstance(task, Ranking) else evaluate)(retriever(task), prep, shards, plan)
        return Judged(found.metrics, f"{found.pictures} pictures, {found.texts} texts", found.excluded)
    return Judged(learning(model, shards, plan), f"{len(shards)} samples")


def judge_whole(model: Loaded, data: str, plan: Plan) -> Judged:
    """As :func:`judge`, with the numbers of each class among the others.

    For pairs that learnt contrast also matching and masked words, which take as long again.
    """
    judged, task = judge(model, data, plan), model.task
    judged = replace(judged, metrics=judged.metrics | judged.by_class)
    if not (isinstance(task, Pairs) and task.can_search):
        return judged
    return replace(judged, metrics=judged.metrics | pair_accuracy(task, model.prep, Shards.open(data), plan))


def check_wishes(task: Task, *, answers: Path | None, sheet: Path | None) -> None:
    """Raises ``ValueError``, before anything is judged, for what such a model does not give."""
    kind = type(task).__name__
    if answers and not isinstance(task, Classification | Captioning):
        raise ValueError(f"--answers {answers}: a {kind} model answers no questions and writes nothing; leave it out")
    if sheet and not isinstance(task, Reconstruct | Segmentation):
        raise ValueError(
            f"--sheet {sheet}: it shows what a tokenizer makes of pictures, or which class their pixels are of; "
            f"this is a {kind} model"
        )


@torch.inference_mode()
def learning(model: Loaded, samples: Samples, plan: Plan) -> dict[str, float]:
    """Gives the mean over batches of what the task logs when it learns, with what is random drawn by sample alone."""
    task, deliveries = model.task, _batches(model, samples, plan)
    device, sums, number = next(task.parameters()).device, dict[str, float](), 0
    for delivery in following(deliveries, total=-(-len(samples) // plan.batch), what="samples"):
        for name, value in task(to_device(delivery.batch, device)).log.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        number += 1
    return {name: total / number for name, total in sums.items()}


def draw(model: Loaded, data: str, path: Path) -> None:
    """Draws what a model makes of the first pictures of ``data``: a tokenizer of visual words, or one of label maps."""
    check_wishes(model.task, answers=None, sheet=path)
    if isinstance(model.task, Segmentation):
        draw_maps(model.task, model.prep, Shards.open(data), path)
    else:
        draw_codes(model, data, path)


def draw_codes(model: Loaded, data: str, path: Path) -> None:
    """Draws pictures beside what their codes tell, and how a tokenizer uses its codes."""
    assert isinstance(model.task, Reconstruct)  # checked above
    plan = Plan(batch=DRAWN, workers=0, exclude_broken=True)
    views = next(_batches(model, Shards.open(data), plan)).batch["view"]
    codebook_sheet(model.task.model, views).save(path)


def _batches(model: Loaded, samples: Samples, plan: Plan) -> Iterator[Delivery]:
    cfg = model.recipe.task
    return evaluation_batches(
        samples,
        partial(_read, model),
        cfg.collate,
        batch=plan.batch,
        workers=plan.workers,
        exclude_broken=plan.exclude_broken,
    )


def _read(model: Loaded, sample: Sample, rng: np.random.Generator) -> Row:
    return model.recipe.task.read(sample, model.prep, rng)
