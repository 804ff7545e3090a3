"""A big batch in little memory: the model runs a few rows at a time, and again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dualfuse.models.base import Tokens


def in_chunks(work: Callable[..., tuple[Tensor, ...]], rows: int, *inputs: Tokens | Tensor) -> tuple[Tensor, ...]:
    """Gives ``work(*inputs)``, computed ``rows`` rows at a time; with 0, or without gradient, all at once.

    What a chunk computes on the way is not kept but computed again in the backward pass, with the same dropout: the
    gradient is the same, memory is that of one chunk, the work a third more. So contrast and hard negatives see the
    whole batch, which accumulating the gradients of micro-batches cannot give them (the idea of GradCache, arXiv
    2101.06983).
    """
    total = len(inputs[0])
    if not rows or rows >= total or not torch.is_grad_enabled():
        return work(*inputs)
    index = torch.arange(total, device=_device(inputs[0])).split(rows)
    parts = [checkpoint(work, *(_take(value, some) for value in inputs), use_reentrant=False) for some in index]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _take(value: Tokens | Tensor, index: Tensor) -> Tokens | Tensor:
    return value.take(index) if isinstance(value, Tokens) else value.index_select(0, index)


def _device(value: Tokens | Tensor) -> torch.device:
    return value.mask.device if isinstance(value, Tokens) else value.device
