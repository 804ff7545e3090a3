"""Batches of texts in few shapes: for each new shape a compiled block is compiled once more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

WORDS, MASKED = 16, 8  # lengths of texts, and numbers of their masked words, become multiples of these
TEXTS = ("ids", "masked_ids", "mask")
"""Tensors (B, T) of every batch that has texts."""


def in_buckets(batch: Mapping[str, Any], longest: int) -> dict[str, Any]:  # Any: each task's TypedDict says which
    """Return the batch with texts padded to a multiple of ``WORDS``, but to ``longest`` at most.

    Masked words, ``rows`` and ``targets`` (B, R), are padded to a multiple of ``MASKED``. No loss depends on padding.
    """
    if "ids" not in batch:
        return dict(batch)
    length = batch["ids"].shape[1]
    wanted = max(length, min(-(-length // WORDS) * WORDS, longest))
    padded = {name: F.pad(batch[name], (0, wanted - length)) for name in TEXTS if name in batch}
    if "positions" in batch and "targets" in batch:
        missing = -batch["positions"].shape[1] % MASKED
        padded |= {name: _longer(batch[name], missing, fill) for name, fill in (("positions", 0), ("targets", -100))}
    return dict(batch) | padded


def _longer(tensor: Tensor, missing: int, fill: int) -> Tensor:
    return F.pad(tensor, (0, missing), value=fill)
