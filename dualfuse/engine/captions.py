"""Captions of every picture of a set: written, compared with those of people, and saved as COCO's server takes them."""

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
from dualfuse.data.shards import Shards
from dualfuse.engine.evaluate import Plan
from dualfuse.engine.progress import following
from dualfuse.tasks.base import Prep
from dualfuse.tasks.caption_metrics import caption_metrics
from dualfuse.tasks.captioning import Captioning

NUMBERS = ("image_id", "cocoid")
"""What sources of COCO call a picture's number in the sample's json."""


@dataclass(frozen=True)
class Written:
    """What a model writes of one picture."""

    key: str
    image_id: str | int
    """How COCO calls the picture, or else the sample's key."""
    caption: str
    probability: float
    """That just this is written."""


@dataclass(frozen=True)
class Captioned:
    """Metrics by name, the captions in file order, how many of them could be compared, and what was left out."""

    metrics: dict[str, float]
    captions: tuple[Written, ...]
    judged: int
    excluded: tuple[Skipped, ...]


class _Row(TypedDict):
    image: Tensor
    key: str
    image_id: str | int
    texts: tuple[str, ...]


def write_all(task: Captioning, prep: Prep, shards: Shards, plan: Plan) -> Captioned:
    """Writes a caption for every picture of ``shards``, and compares those whose picture has captions of people.

    A set without any, such as a test set, gives captions and no metrics. A picture that cannot be read raises
    ``BrokenSample``, or is left out and reported with ``plan.exclude_broken``.
    """
    device = next(task.parameters()).device
    deliveries = evaluation_batches(
        shards,
        partial(_read, prep),
        _collate,
        batch=plan.batch,
        workers=plan.workers,
        exclude_broken=plan.exclude_broken,
    )
    captions, references, excluded = list[Written](), list[tuple[str, ...]](), list[Skipped]()
    for delivery in following(deliveries, total=-(-len(shards) // plan.batch), what="captions"):
        excluded += delivery.skipped
        rows = delivery.batch["rows"]
        for row, (best, *_) in zip(rows, task.write(delivery.batch["image"].to(device), prep.text), strict=True):
            captions.append(Written(row["key"], row["image_id"], best.text, best.probability))
            references.append(row["texts"])
    judged = [(one.caption, texts) for one, texts in zip(captions, references, strict=True) if texts]
    metrics = caption_metrics([said for said, _ in judged], [texts for _, texts in judged])
    return Captioned(metrics, tuple(captions), len(judged), tuple(excluded))


def _read(prep: Prep, sample: Sample, rng: np.random.Generator) -> _Row:
    found = (sample.meta[name] for name in NUMBERS if isinstance(sample.meta.get(name), int))
    number = next((name for name in found if isinstance(name, int)), sample.key)
    return {"image": prep.image(sample.image, rng), "key": sample.key, "image_id": number, "texts": sample.texts}


def _collate(rows: Sequence[_Row]) -> dict[str, object]:
    return {"image": torch.stack([row["image"] for row in rows]), "rows": tuple(rows)}


def save_captions(captions: Sequence[Written], path: Path) -> None:
    """Writes captions in the form that the ending of ``path`` says.

    ".json": COCO's list of {"image_id", "caption"}, for its server. ".jsonl": one object a line, with key and
    probability. ``ValueError`` for another ending, and for two captions of one picture where a server would refuse.
    """
    if path.suffix == ".jsonl":
        lines = (json.dumps(vars(caption), ensure_ascii=False) for caption in captions)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return
    if path.suffix != ".json":
        raise ValueError(f"{path} should end in .json, COCO's form, or .jsonl, all that is known")
    twice = [name for name, count in Counter(caption.image_id for caption in captions).items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} pictures have more than one caption, such as {twice[0]!r}; look at the shards")
    listed = [{"image_id": caption.image_id, "caption": caption.caption} for caption in captions]
    path.write_text(json.dumps(listed, ensure_ascii=False) + "\n", encoding="utf-8")
