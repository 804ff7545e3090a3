"""Chunked computation: run a model on a few examples at a time, and again in the backward pass.

ITC and hard negatives then see the whole batch, which gradient accumulation over micro-batches cannot offer
(the idea of GradCache, arXiv 2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dualfuse.models.base import Tokens


@dataclass(frozen=True)
class LazyEmbeddings:
    """Images or texts that are embedded only when they are used: the examples ``index`` (B,) of ``inputs``."""

    embed: Callable[..., Tokens]
    inputs: tuple[Tensor, ...]
    index: Tensor

    @classmethod
    def of(cls, embed: Callable[..., Tokens], *inputs: Tensor) -> LazyEmbeddings:
        """Return all examples of ``inputs``, tensors (B, ...) that ``embed`` takes."""
        return cls(embed, inputs, torch.arange(len(inputs[0]), device=inputs[0].device))

    def __len__(self) -> int:
        """Return the number of examples B."""
        return len(self.index)

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        return self.index.device

    def take(self, index: Tensor) -> LazyEmbeddings:
        """Return the examples ``index`` (K,), in that order, without copying inputs."""
        return replace(self, index=self.index.index_select(0, index))

    def compute(self) -> Tokens:
        """Embed the examples."""
        return self.embed(*(value.index_select(0, self.index) for value in self.inputs))


Embeddings = Tokens | LazyEmbeddings
"""A batch of one modality, embedded now or later."""


def materialize(embeddings: Embeddings) -> Tokens:
    """Return embedded tokens."""
    return embeddings.compute() if isinstance(embeddings, LazyEmbeddings) else embeddings


def grad_cache(
    function: Callable[..., tuple[Tensor, ...]], chunk: int, *inputs: Embeddings | Tensor
) -> tuple[Tensor, ...]:
    """Return ``function(*inputs)``, computed on ``chunk`` examples at a time (0: on all at once).

    Activations of a chunk are dropped and recomputed in the backward pass with the same dropout masks. The gradient
    is that of the whole batch, memory that of one chunk, at about a third more compute.
    """
    if not chunk:
        return function(*inputs)
    chunks = torch.arange(len(inputs[0]), device=inputs[0].device).split(chunk)
    parts = [checkpoint(function, *(_take(value, index) for value in inputs), use_reentrant=False) for index in chunks]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _take(value: Embeddings | Tensor, index: Tensor) -> Embeddings | Tensor:
    return value.index_select(0, index) if isinstance(value, Tensor) else value.take(index)
