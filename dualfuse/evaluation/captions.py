"""Captions of every image of a set: written, compared with those of people, and saved as COCO's server takes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.loader import Skipped, evaluation_batches
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.retrieval import Plan
from dualfuse.io import write_text
from dualfuse.metrics.captions import caption_metrics
from dualfuse.progress import track
from dualfuse.tasks.base import Processor
from dualfuse.tasks.finetune.captioning import Captioning

NUMBERS = ("image_id", "cocoid")
"""What sources of COCO call an image's number in the sample's json."""


@dataclass(frozen=True)
class PredictedCaption:
    """What a model writes of one image."""

    key: str
    image_id: str | int
    """How COCO calls the image, or else the sample's key."""
    caption: str
    probability: float
    """That just this is written."""


@dataclass(frozen=True)
class CaptionResult:
    """Metrics by name, the captions in file order, how many of them could be compared, and what was left out."""

    metrics: dict[str, float]
    captions: tuple[PredictedCaption, ...]
    with_references: int
    excluded: tuple[Skipped, ...]


class _Row(TypedDict):
    image: Tensor
    key: str
    image_id: str | int
    texts: tuple[str, ...]


def evaluate_captions(task: Captioning, processor: Processor, shards: Shards, plan: Plan) -> CaptionResult:
    """Write a caption for every image of ``shards``, and compares those whose image has captions of people.

    A set without any, such as a test set, gives captions and no metrics. An image that cannot be read raises
    ``BrokenSample``, or is left out and reported with ``plan.exclude_broken``.
    """
    device = next(task.parameters()).device
    loaded_batches = evaluation_batches(
        shards,
        partial(_read, processor),
        _collate,
        batch_size=plan.batch_size,
        num_workers=plan.num_workers,
        exclude_broken=plan.exclude_broken,
    )
    captions, references, excluded = list[PredictedCaption](), list[tuple[str, ...]](), list[Skipped]()
    for loaded_batch in track(loaded_batches, total=-(-len(shards) // plan.batch_size), what="captions"):
        excluded += loaded_batch.skipped
        rows = loaded_batch.batch["rows"]
        for row, (best, *_) in zip(
            rows, task.generate(loaded_batch.batch["image"].to(device), processor.text), strict=True
        ):
            captions.append(PredictedCaption(row["key"], row["image_id"], best.text, best.probability))
            references.append(row["texts"])
    evaluated = [(one.caption, texts) for one, texts in zip(captions, references, strict=True) if texts]
    metrics = caption_metrics([said for said, _ in evaluated], [texts for _, texts in evaluated])
    return CaptionResult(metrics, tuple(captions), len(evaluated), tuple(excluded))


def _read(processor: Processor, sample: Sample, rng: np.random.Generator) -> _Row:
    found = (sample.meta[name] for name in NUMBERS if isinstance(sample.meta.get(name), int))
    number = next((name for name in found if isinstance(name, int)), sample.key)
    return {"image": processor.image(sample.image, rng), "key": sample.key, "image_id": number, "texts": sample.texts}


def _collate(rows: Sequence[_Row]) -> dict[str, object]:
    return {"image": torch.stack([row["image"] for row in rows]), "rows": tuple(rows)}


def save_captions(captions: Sequence[PredictedCaption], path: Path) -> None:
    """Write captions in the form that the ending of ``path`` says.

    ".json": COCO's list of {"image_id", "caption"}, for its server. ".jsonl": one object a line, with key and
    probability. ``DualfuseError`` for another ending, and for two captions of one image where a server would refuse.
    """
    if path.suffix == ".jsonl":
        lines = (json.dumps(vars(caption), ensure_ascii=False) for caption in captions)
        write_text(path, "".join(f"{line}\n" for line in lines))
        return
    if path.suffix != ".json":
        raise DualfuseError(f"{path} should end in .json, COCO's form, or .jsonl, all that is known")
    twice = [name for name, count in Counter(caption.image_id for caption in captions).items() if count > 1]
    if twice:
        raise DualfuseError(f"{len(twice)} images have more than one caption, such as {twice[0]!r}; look at the shards")
    listed = [{"image_id": caption.image_id, "caption": caption.caption} for caption in captions]
    write_text(path, json.dumps(listed, ensure_ascii=False) + "\n")
