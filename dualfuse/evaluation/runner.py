"""What a model is judged by: what it was trained for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dualfuse.data.loader import Example, LoadedBatch, Samples, Skipped, evaluation_batches
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.answers import PredictedAnswer, evaluate_answers, write_answers
from dualfuse.evaluation.captions import PredictedCaption, evaluate_captions, save_captions
from dualfuse.evaluation.fused_retrieval import evaluate_fused_retrieval
from dualfuse.evaluation.gallery import can_retrieve, retriever
from dualfuse.evaluation.masked_text import evaluate_masked_text
from dualfuse.evaluation.pairs import evaluate_pairs
from dualfuse.evaluation.retrieval import Plan, evaluate_retrieval
from dualfuse.evaluation.segmentation import draw_segmentation, evaluate_segmentation
from dualfuse.hub import LoadedModel
from dualfuse.progress import track
from dualfuse.tasks.base import Task
from dualfuse.tasks.finetune.captioning import Captioning
from dualfuse.tasks.finetune.classification import Classification
from dualfuse.tasks.finetune.ranking import Ranking
from dualfuse.tasks.finetune.segmentation import Segmentation
from dualfuse.tasks.pretrain.codebook_grid import codebook_grid
from dualfuse.tasks.pretrain.masked_text import MaskedText
from dualfuse.tasks.pretrain.pairs import Pairs
from dualfuse.tasks.pretrain.vq_tokenizer import VQTokenizer
from dualfuse.training.dataloader import open_sets
from dualfuse.training.prefetch import to_device

NO_SHARES = ("loss", "CIDEr-D")  # how numbers are called that are no shares of one
DRAWN = 256  # images whose codes are counted on a sheet


@dataclass(frozen=True)
class EvaluationResult:
    """Numbers by name, most of them shares of one; how many of what; what was left out; answers or captions."""

    metrics: dict[str, float]
    size: str
    excluded: tuple[Skipped, ...] = ()
    answers: tuple[PredictedAnswer, ...] = ()
    captions: tuple[PredictedCaption, ...] = ()
    by_class: dict[str, float] = field(default_factory=dict[str, float])
    """More shares, one for each of many classes: too many for the log of a run."""

    def write(self, path: Path) -> None:
        """Write the answers or captions in the form that the ending of ``path`` says."""
        if self.captions:
            save_captions(self.captions, path)
        else:
            write_answers(self.answers, path)

    def lines(self) -> list[str]:
        """Return what people read: a line for each number, and what was left out."""
        width = max(map(len, self.metrics), default=0)
        numbers = (
            f"{name:{width}}  {value:7.3f}" if name.endswith(NO_SHARES) else f"{name:{width}}  {100 * value:5.1f} %"
            for name, value in self.metrics.items()
        )
        excluded = (f"  excluded {skipped.key}: {skipped.reason}" for skipped in self.excluded)
        return [*numbers, f"{self.size}, {len(self.excluded)} excluded", *excluded]


def evaluate(model: LoadedModel, data: str, plan: Plan) -> EvaluationResult:
    """Evaluate a model in evaluation mode on ``data``, shards or, for one that learns from text alone, a text corpus.

    Retrieval for a task that trained contrast, matching and words for one that trained them alone, answers for one that
    answers; any other task by what it logs when it learns.
    """
    task, processor = model.task, model.processor
    if isinstance(task, MaskedText):
        texts = open_sets(model.recipe, (data,))[0]
        # lines that cannot be read are found, and told of, when the corpus is packed
        metrics = evaluate_masked_text(task, processor, texts, replace(plan, exclude_broken=True))
        return EvaluationResult(metrics, f"{len(texts)} rows of text")
    shards = Shards.open(data)
    if isinstance(task, Classification):
        scored = evaluate_answers(task, processor, shards, plan)
        size = f"{len(scored.answers)} questions, {scored.labelled} of them with a known answer"
        return EvaluationResult(scored.metrics, size, scored.excluded, scored.answers)
    if isinstance(task, Captioning):
        written = evaluate_captions(task, processor, shards, plan)
        size = f"{len(written.captions)} images, {written.with_references} of them with captions of people"
        return EvaluationResult(written.metrics, size, written.excluded, captions=written.captions)
    if isinstance(task, Segmentation):
        mapped = evaluate_segmentation(task, processor, shards, plan)
        size = f"{mapped.images} images, {mapped.pixels:,} pixels"
        return EvaluationResult(mapped.metrics, size, mapped.excluded, by_class=mapped.by_class)
    if isinstance(task, Pairs) and not task.can_search:
        return EvaluationResult(evaluate_pairs(task, processor, shards, plan), f"{len(shards)} pairs")
    if can_retrieve(task):
        found = (evaluate_fused_retrieval if isinstance(task, Ranking) else evaluate_retrieval)(
            retriever(task), processor, shards, plan
        )
        return EvaluationResult(found.metrics, f"{found.images} images, {found.texts} texts", found.excluded)
    return EvaluationResult(training_metrics(model, shards, plan), f"{len(shards)} samples")


def evaluate_all(model: LoadedModel, data: str, plan: Plan) -> EvaluationResult:
    """As :func:`judge`, with the numbers of each class among the others.

    For pairs that trained contrast also matching and masked words, which take as long again.
    """
    evaluated, task = evaluate(model, data, plan), model.task
    evaluated = replace(evaluated, metrics=evaluated.metrics | evaluated.by_class)
    if not (isinstance(task, Pairs) and task.can_search):
        return evaluated
    return replace(
        evaluated, metrics=evaluated.metrics | evaluate_pairs(task, model.processor, Shards.open(data), plan)
    )


def check_outputs(task: Task, *, answers: Path | None, save_image: Path | None) -> None:
    """Raise ``DualfuseError``, before anything is judged, for what such a model does not give."""
    kind = type(task).__name__
    if answers and not isinstance(task, Classification | Captioning):
        raise DualfuseError(
            f"--answers {answers}: a {kind} model answers no questions and writes nothing; leave it out"
        )
    if save_image and not isinstance(task, VQTokenizer | Segmentation):
        raise DualfuseError(
            f"--save-image {save_image}: it shows what a tokenizer makes of images, or which class their pixels are of; "
            f"this is a {kind} model"
        )


@torch.inference_mode()
def training_metrics(model: LoadedModel, samples: Samples, plan: Plan) -> dict[str, float]:
    """Return the mean over batches of what the task logs when it learns, with what is random drawn by sample alone."""
    task, loaded_batches = model.task, _batches(model, samples, plan)
    device, sums, number = next(task.parameters()).device, dict[str, float](), 0
    for loaded_batch in track(loaded_batches, total=-(-len(samples) // plan.batch_size), what="samples"):
        for name, value in task(to_device(loaded_batch.batch, device)).log.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        number += 1
    return {name: total / number for name, total in sums.items()}


def draw(model: LoadedModel, data: str, path: Path) -> None:
    """Draw what a model makes of the first images of ``data``: a tokenizer of visual words, or one of label maps."""
    check_outputs(model.task, answers=None, save_image=path)
    if isinstance(model.task, Segmentation):
        draw_segmentation(model.task, model.processor, Shards.open(data), path)
    else:
        draw_codebook(model, data, path)


def draw_codebook(model: LoadedModel, data: str, path: Path) -> None:
    """Draw images beside what their codes tell, and how a tokenizer uses its codes."""
    assert isinstance(model.task, VQTokenizer)  # checked above
    plan = Plan(batch_size=DRAWN, num_workers=0, exclude_broken=True)
    views = next(_batches(model, Shards.open(data), plan)).batch["view"]
    codebook_grid(model.task.model, views).save(path)


def _batches(model: LoadedModel, samples: Samples, plan: Plan) -> Iterator[LoadedBatch]:
    cfg = model.recipe.task
    return evaluation_batches(
        samples,
        partial(_read, model),
        cfg.collate,
        batch_size=plan.batch_size,
        num_workers=plan.num_workers,
        exclude_broken=plan.exclude_broken,
    )


def _read(model: LoadedModel, sample: Sample, rng: np.random.Generator) -> Example:
    return model.recipe.task.read(sample, model.processor, rng)
