"""A big batch in little memory: the model runs a few rows at a time, and again in the backward pass.

So contrast and hard negatives see the whole batch, which accumulating the gradients of micro-batches cannot give them
(the idea of GradCache, arXiv 2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dualfuse.models.base import Tokens, VisionLanguageModel


@dataclass(frozen=True)
class LazyEmbeddings:
    """Rows of one modality that are not embedded yet: the rows ``index`` (B,) of what ``embed`` takes."""

    embed: Callable[..., Tokens]
    inputs: tuple[Tensor, ...]
    index: Tensor

    def __len__(self) -> int:
        """The number of rows B."""
        return len(self.index)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.index.device

    def take(self, index: Tensor) -> LazyEmbeddings:
        """Return the rows ``index`` (K,), in that order; no pixel is copied."""
        return replace(self, index=self.index.index_select(0, index))

    def compute(self) -> Tokens:
        """Embed them."""
        return self.embed(*(value.index_select(0, self.index) for value in self.inputs))


Embeddings = Tokens | LazyEmbeddings
"""Of one modality, embedded or not."""


@dataclass(frozen=True)
class LazyEmbedder:
    """Embeds a model's images and texts only where a few of them are used, so that no batch is held embedded."""

    model: VisionLanguageModel

    def embed_image(self, images: Tensor) -> LazyEmbeddings:
        """Return images (B, 3, H, W) as they are."""
        return LazyEmbeddings(self.model.embed_image, (images,), torch.arange(len(images), device=images.device))

    def embed_text(self, ids: Tensor, mask: Tensor) -> LazyEmbeddings:
        """Return texts (B, T) as they are."""
        return LazyEmbeddings(self.model.embed_text, (ids, mask), torch.arange(len(ids), device=ids.device))


def materialize(rows: Embeddings) -> Tokens:
    """Return rows embedded."""
    return rows.compute() if isinstance(rows, LazyEmbeddings) else rows


def grad_cache(work: Callable[..., tuple[Tensor, ...]], rows: int, *inputs: Embeddings | Tensor) -> tuple[Tensor, ...]:
    """Return ``work(*inputs)``, computed ``rows`` rows at a time; with 0 all at once.

    What a chunk computes on the way is not kept but computed again in the backward pass, with the same dropout: the
    gradient is the same, memory is that of one chunk, the work a third more.
    """
    if not rows:
        return work(*inputs)
    index = torch.arange(len(inputs[0]), device=inputs[0].device).split(rows)
    parts = [checkpoint(work, *(_take(value, some) for value in inputs), use_reentrant=False) for some in index]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _take(value: Embeddings | Tensor, index: Tensor) -> Embeddings | Tensor:
    return value.index_select(0, index) if isinstance(value, Tensor) else value.take(index)
