"""Label maps, judged and drawn: every pixel of every image of a set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.loader import Example, LoadedBatch, Skipped, evaluation_batches
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.retrieval import Plan
from dualfuse.metrics.mean_iou import ConfusionMatrix
from dualfuse.progress import track
from dualfuse.tasks.base import Processor
from dualfuse.tasks.finetune.segmentation import Segmentation, SegmentationConfig
from dualfuse.tasks.finetune.segmentation_grid import Segmented, segmentation_grid

DRAWN = 12
"""Images on a sheet."""


@dataclass(frozen=True)
class SegmentationResult:
    """Shares of one by name, and those of each class; how much was judged, and what was left out."""

    metrics: dict[str, float]
    by_class: dict[str, float]
    images: int
    pixels: int
    excluded: tuple[Skipped, ...]


@torch.inference_mode()
def evaluate_segmentation(task: Segmentation, processor: Processor, shards: Shards, plan: Plan) -> SegmentationResult:
    """Evaluate a task in evaluation mode by its mean IoU, at the size that images and label maps have.

    Images differ in size, so that they are looked at one by one, whatever ``plan.batch``. One without a label map
    that fits raises ``BrokenSample``, or is left out and reported with ``plan.exclude_broken``.
    """
    if task.training:
        raise DualfuseError("the task is in training mode; call eval() on it before it is judged")
    confusion, excluded, images = ConfusionMatrix(len(task.names)), list[Skipped](), 0
    for loaded_batch in track(_one_by_one(task, processor, shards, plan), total=len(shards), what="images"):
        excluded += loaded_batch.skipped
        truth = loaded_batch.batch["truth"]
        confusion.add(_predicted(task, processor, loaded_batch), truth)
        images += 1
    by_class = confusion.by_class(task.names)
    return SegmentationResult(confusion.result(), by_class, images, confusion.pixels, tuple(excluded))


@torch.inference_mode()
def draw_segmentation(task: Segmentation, processor: Processor, shards: Shards, path: Path) -> None:
    """Draw the first images of ``shards`` beside their true and their predicted classes."""
    plan = Plan(num_workers=0, exclude_broken=True)
    shown = [
        Segmented(loaded_batch.batch["file"], loaded_batch.batch["truth"], _predicted(task, processor, loaded_batch))
        for loaded_batch in islice(_one_by_one(task, processor, shards, plan), DRAWN)
    ]
    segmentation_grid(shown, task.names, heading=f"the first {len(shown)} of {len(shards):,} images").save(path)


def _predicted(task: Segmentation, processor: Processor, loaded_batch: LoadedBatch) -> Tensor:
    image, (height, width) = loaded_batch.batch["image"], loaded_batch.batch["truth"].shape
    device = next(task.parameters()).device
    return task.segment(image.to(device), processor.image.size, (height, width)).cpu()


def _one_by_one(task: Segmentation, processor: Processor, shards: Shards, plan: Plan) -> Iterator[LoadedBatch]:
    return evaluation_batches(
        shards,
        partial(_read, task.cfg, processor),
        _alone,
        batch_size=1,
        num_workers=plan.num_workers,
        exclude_broken=plan.exclude_broken,
    )


def _read(cfg: SegmentationConfig, processor: Processor, sample: Sample, _: np.random.Generator) -> Example:
    return cfg.read_whole(sample, processor)


def _alone(rows: Sequence[Any]) -> Example:  # Any: the one row of a WholeRow
    return rows[0]
