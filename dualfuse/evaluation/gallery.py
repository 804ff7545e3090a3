"""Finding images by text and texts by image: what both need of a sample, and of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.padding import pad_texts
from dualfuse.errors import DualfuseError
from dualfuse.models.base import Tokens, VisionLanguageModel
from dualfuse.tasks.base import Processor, Task

RETRIEVER = ("image_features", "text_features", "can_search", "can_match", "match_logit", "rerank_score")


class Retriever(Protocol):
    """A task that can search (both features) and re-rank (the score of a pair)."""

    model: VisionLanguageModel

    def image_features(self, image: Tokens) -> Tensor:
        """Return unit vectors (B, D)."""
        ...

    def text_features(self, text: Tokens) -> Tensor:
        """Return unit vectors (B, D)."""
        ...

    @property
    def can_search(self) -> bool:
        """Whether contrast was trained; without it there are no features."""
        ...

    @property
    def can_match(self) -> bool:
        """Whether matching was trained, and with it re-ranking."""
        ...

    def match_logit(self, image: Tokens, text: Tokens) -> Tensor:
        """Return the log-odds (B,) that image and text belong together; ``DualfuseError`` if that was not trained."""
        ...

    def rerank_score(self, cosine: Tensor, match: Tensor) -> Tensor:
        """Return the scores by which candidates are put in order, from the two scores of the same shape."""
        ...


def can_retrieve(task: Task) -> bool:
    """Whether :func:`retriever` takes the task."""
    return all(hasattr(task, name) for name in RETRIEVER)


def retriever(task: Task) -> Retriever:
    """Return the task itself if it can search and re-rank; else ``DualfuseError``."""
    missing = [name for name in RETRIEVER if not hasattr(task, name)]
    if missing:
        raise DualfuseError(
            f"a model trained for {type(task).__name__} cannot search: it has no {', '.join(missing)}; "
            "give the folder of one trained on pairs of images and texts"
        )
    return cast(Retriever, task)  # all its methods were found


class GalleryExample(TypedDict):
    """One image (3, H, W) with all its texts, each (T,) tokens."""

    image: Tensor
    texts: tuple[np.ndarray, ...]
    key: str


class GalleryBatch(TypedDict):
    """B images (B, 3, H, W), the tokens of each one's texts, and their keys."""

    image: Tensor
    texts: tuple[tuple[np.ndarray, ...], ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Reads images with all their captions, as they are."""

    processor: Processor
    needs_text: bool = True

    def read(self, sample: Sample, rng: np.random.Generator) -> GalleryExample:
        """Return the image and every text; nothing is drawn from ``rng``."""
        if self.needs_text and not sample.texts:
            raise BrokenSample(sample.key, "it has no text")
        texts = tuple(self.processor.text.encode(text).ids for text in sample.texts)
        return {"image": self.processor.image(sample.image, rng), "texts": texts, "key": sample.key}

    def collate(self, rows: Sequence[GalleryExample]) -> GalleryBatch:
        """Put images under each other; texts stay apart."""
        return {
            "image": torch.stack([row["image"] for row in rows]),
            "texts": tuple(row["texts"] for row in rows),
            "keys": tuple(row["key"] for row in rows),
        }


@dataclass(frozen=True)
class TextBatch:
    """Tokens of many texts: ``ids`` and ``mask`` (M, T)."""

    ids: Tensor
    mask: Tensor

    @staticmethod
    def of(rows: Sequence[np.ndarray]) -> TextBatch:
        """Pad texts to the longest."""
        return TextBatch(*pad_texts(rows))

    def take(self, index: Tensor, device: torch.device) -> TextBatch:
        """Return some of them, no wider than the longest of these."""
        mask = self.mask[index]
        width = int(mask.sum(1).max()) if len(index) else 0
        return TextBatch(self.ids[index, :width].to(device), mask[:, :width].to(device))
