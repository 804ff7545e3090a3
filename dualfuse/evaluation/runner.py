"""The runner of every evaluation: reads a set in batches, shows progress, and reports excluded samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from dualfuse.data.loader import Batch, Collate, Example, Samples, Skipped, evaluation_batches, to_device
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.predictions import SetPrediction, write_predictions
from dualfuse.metrics.base import MetricInfo, find_metric
from dualfuse.metrics.calibration import ReliabilityBin
from dualfuse.progress import track

if TYPE_CHECKING:
    from dualfuse.hub import LoadedModel
    from dualfuse.tasks.base import Task

Read = Callable[[Sample, Processor, np.random.Generator], Example]
"""Turns a sample into an example, as ``TaskConfig.read`` does."""


@dataclass(frozen=True)
class Plan:
    """Options of an evaluation."""

    batch_size: int = 64
    """Images, texts or pairs in one forward pass."""
    rerank: int = 0
    """Candidates per query that the fusion encoder re-ranks; 0: none."""
    num_workers: int = 2
    """Loader processes; 0: read in this process."""
    exclude_broken: bool = False
    """Exclude and report samples that cannot be read, instead of stopping at the first one."""
    scales: tuple[float, ...] = ()
    """Segmentation averages over the image at these scales, relative to that of training; empty: at scale 1 alone."""
    flip: bool = False
    """Segmentation also averages over the mirrored images."""
    answers: bool = False
    """Also return the result of each sample: ranks of retrieval, losses of the other tasks (one sample at a time)."""
    all_metrics: bool = False
    """Also compute the metrics that training does not log: one per class, and ITM and MLM beside retrieval."""

    def __post_init__(self) -> None:
        """Validate the numbers."""
        if self.batch_size < 1 or self.rerank < 0 or self.num_workers < 0:
            raise DualfuseError(
                f"batch_size is {self.batch_size}, rerank {self.rerank}, num_workers {self.num_workers}; give "
                "at least 1, 0 and 0"
            )
        if not all(0 < scale < float("inf") for scale in self.scales):
            raise DualfuseError(f"scales are {self.scales}; each must be above 0")


@dataclass(frozen=True)
class EvaluationData:
    """The samples of a set, and the processor that turns them into tensors."""

    samples: Samples
    processor: Processor


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics by name, the size of the set, the excluded samples, the predictions, and what the metrics mean."""

    metrics: Mapping[str, float]
    size: str
    """What was evaluated, such as "1,000 images, 5,000 texts"."""
    excluded: tuple[Skipped, ...] = ()
    predictions: tuple[SetPrediction, ...] = ()
    """In file order: answers, captions, or, with ``plan.answers``, ranks and losses of samples."""
    declared: tuple[MetricInfo, ...] = ()
    """Declarations of the metrics."""
    reliability: Mapping[str, Sequence[ReliabilityBin]] = field(default_factory=dict[str, Sequence[ReliabilityBin]])
    """Probabilities of pairs and the shares that are right, by the kind of score, of a calibrated model."""
    samples: Samples | None = None
    """What was evaluated, if ``evaluate`` opened it."""

    def write(self, path: Path) -> None:
        """Write the predictions in the format of the suffix of ``path``."""
        write_predictions(self.predictions, path, self.samples)

    def lines(self) -> list[str]:
        """Return the result as text: one line per metric, the size, and one line per excluded sample."""
        width = max(map(len, self.metrics), default=0)
        numbers = (
            f"{name:{width}}  {format_metric(self.declared, name, value):>7}" for name, value in self.metrics.items()
        )
        excluded = (f"  excluded {skipped.key}: {skipped.reason}" for skipped in self.excluded)
        return [*numbers, f"{self.size}, {len(self.excluded)} excluded", *excluded]


def format_metric(declared: Sequence[MetricInfo], name: str, value: float) -> str:
    """Return a metric in its unit; one that is not declared as a plain number."""
    return (find_metric(declared, name) or MetricInfo(name)).text(value)


class Evaluation:
    """One evaluation of a model: reads the samples as often as a task needs, and collects the excluded ones."""

    def __init__(self, model: nn.Module, data: EvaluationData, plan: Plan) -> None:
        """Raise DualfuseError if ``model`` is in training mode, where dropout makes its outputs random."""
        if model.training:
            raise DualfuseError("the model is in training mode; call eval() on the task before it is evaluated")
        self.data, self.plan = data, plan
        self.device = next(model.parameters()).device
        self._excluded: dict[str, Skipped] = {}

    def batches(self, read: Read, collate: Collate, *, what: str = "", batch_size: int = 0) -> Iterator[Batch]:
        """Yield all samples in file order, in batches on the device of the model.

        ``what`` labels the progress bar (empty: none); ``batch_size`` replaces that of the plan. A sample that cannot
        be read raises ``BrokenSample``, or is excluded with ``plan.exclude_broken``.
        """
        size = batch_size or self.plan.batch_size
        loaded_batches = evaluation_batches(
            self.data.samples,
            partial(_read, read, self.data.processor),
            collate,
            batch_size=size,
            num_workers=self.plan.num_workers,
            exclude_broken=self.plan.exclude_broken,
        )
        if what:
            loaded_batches = track(loaded_batches, total=-(-len(self.data.samples) // size), what=what)
        for loaded_batch in loaded_batches:
            self._excluded |= {skipped.key: skipped for skipped in loaded_batch.skipped}
            yield to_device(loaded_batch.batch, self.device)

    def result(
        self, metrics: Mapping[str, float], size: str, predictions: Sequence[SetPrediction] = ()
    ) -> EvaluationResult:
        """Return the result, with the samples that were excluded so far."""
        return EvaluationResult(metrics, size, tuple(self._excluded.values()), tuple(predictions))


def _read(read: Read, processor: Processor, sample: Sample, rng: np.random.Generator) -> Example:
    return read(sample, processor, rng)


def evaluate(model: LoadedModel, data: str, plan: Plan) -> EvaluationResult:
    """Evaluate a model on its training task; ``data`` are shards or, for masked text, a text corpus.

    Raises DualfuseError if the model is in training mode, and ``BrokenSample`` for a sample that cannot be read,
    unless ``plan.exclude_broken`` is set.
    """
    opened = open_data(model, data)
    result = model.task.evaluate(opened, plan)
    return replace(result, declared=model.task.cfg.metrics(plan), samples=opened.samples)


def draw(model: LoadedModel, data: str, path: Path) -> None:
    """Draw the predictions of a model for the first images of ``data``; DualfuseError if its task draws nothing."""
    check_outputs(model.task, answers=None, save_image=path)
    model.task.draw(open_data(model, data), path)


def check_outputs(task: Task, *, answers: Path | None, save_image: Path | None) -> None:
    """Raise DualfuseError, before an evaluation starts, if the task cannot fill one of the files."""
    kind = type(task).__name__
    if answers and not (task.writes_predictions or task.has_sample_results):
        raise DualfuseError(f"--answers {answers}: a {kind} model has no result of each sample; omit it")
    if save_image and not task.can_draw:
        raise DualfuseError(
            f"--save-image {save_image}: only image tokenizers and segmentation models can be drawn; "
            f"this is a {kind} model"
        )


def check_test_augmentation(task: Task, plan: Plan) -> None:
    """Raise DualfuseError, before an evaluation starts, if the plan has scales or flips that the task ignores."""
    if (plan.scales or plan.flip) and not task.averages_views:
        raise DualfuseError(
            f"--scales and --flip average the predictions of segmentation; this is a {type(task).__name__} model"
        )


def open_data(model: LoadedModel, data: str) -> EvaluationData:
    """Open the shards or the corpus ``data`` for an evaluation of a model."""
    [samples] = model.task.cfg.open_data((data,), model.processor.text)
    return EvaluationData(samples, model.processor)
