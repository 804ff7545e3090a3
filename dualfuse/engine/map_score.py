"""Label maps, judged and drawn: every pixel of every picture of a set."""

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

from dualfuse.data.loader import Delivery, Row, Skipped, evaluation_batches
from dualfuse.data.sample import Sample
from dualfuse.data.shards import Shards
from dualfuse.engine.evaluate import Plan
from dualfuse.engine.progress import following
from dualfuse.tasks.base import Prep
from dualfuse.tasks.confusion import Confusion
from dualfuse.tasks.segmentation import Segmentation, SegmentationConfig
from dualfuse.tasks.segmentation_sheet import Segmented, segmentation_sheet

DRAWN = 12
"""Pictures on a sheet."""


@dataclass(frozen=True)
class Mapped:
    """Shares of one by name, and those of each class; how much was judged, and what was left out."""

    metrics: dict[str, float]
    by_class: dict[str, float]
    pictures: int
    pixels: int
    excluded: tuple[Skipped, ...]


@torch.inference_mode()
def score_maps(task: Segmentation, prep: Prep, shards: Shards, plan: Plan) -> Mapped:
    """Judges a task in evaluation mode by its mean IoU, at the size that pictures and label maps have.

    Pictures differ in size, so that they are looked at one by one, whatever ``plan.batch``. One without a label map
    that fits raises ``BrokenSample``, or is left out and reported with ``plan.exclude_broken``.
    """
    if task.training:
        raise ValueError("the task is in training mode; call eval() on it before it is judged")
    confusion, excluded, pictures = Confusion(len(task.names)), list[Skipped](), 0
    for delivery in following(_one_by_one(task, prep, shards, plan), total=len(shards), what="pictures"):
        excluded += delivery.skipped
        truth = delivery.batch["truth"]
        confusion.add(_predicted(task, prep, delivery), truth)
        pictures += 1
    by_class = confusion.by_class(task.names)
    return Mapped(confusion.result(), by_class, pictures, confusion.pixels, tuple(excluded))


@torch.inference_mode()
def draw_maps(task: Segmentation, prep: Prep, shards: Shards, path: Path) -> None:
    """Draws the first pictures of ``shards`` beside their true and their predicted classes."""
    plan = Plan(workers=0, exclude_broken=True)
    shown = [
        Segmented(delivery.batch["file"], delivery.batch["truth"], _predicted(task, prep, delivery))
        for delivery in islice(_one_by_one(task, prep, shards, plan), DRAWN)
    ]
    segmentation_sheet(shown, task.names, heading=f"the first {len(shown)} of {len(shards):,} pictures").save(path)


def _predicted(task: Segmentation, prep: Prep, delivery: Delivery) -> Tensor:
    image, (height, width) = delivery.batch["image"], delivery.batch["truth"].shape
    device = next(task.parameters()).device
    return task.segment(image.to(device), prep.image.size, (height, width)).cpu()


def _one_by_one(task: Segmentation, prep: Prep, shards: Shards, plan: Plan) -> Iterator[Delivery]:
    return evaluation_batches(
        shards,
        partial(_read, task.cfg, prep),
        _alone,
        batch=1,
        workers=plan.workers,
        exclude_broken=plan.exclude_broken,
    )


def _read(cfg: SegmentationConfig, prep: Prep, sample: Sample, _: np.random.Generator) -> Row:
    return cfg.whole(sample, prep)


def _alone(rows: Sequence[Any]) -> Row:  # Any: the one row of a WholeRow
    return rows[0]
