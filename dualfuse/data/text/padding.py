"""Padding: texts of several lengths as one batch, and batches in few shapes for compiled models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

TEXT_MULTIPLE, TARGET_MULTIPLE = 16, 8
TEXTS = ("ids", "masked_ids", "mask")
"""Tensors (B, T) of every batch that has texts."""


def pad_arrays(arrays: Sequence[np.ndarray], value: int) -> np.ndarray:
    """Return ``arrays`` (each (T,)) as one array (B, longest T), the shorter ones filled up with ``value``."""
    padded = np.full((len(arrays), max(map(len, arrays))), value, dtype=arrays[0].dtype)
    for row, values in zip(padded, arrays, strict=True):
        row[: len(values)] = values
    return padded


def pad_texts(texts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return token ids, each (T,), as (B, longest T), and the mask of the real tokens (B, longest T)."""
    lengths = torch.tensor([len(text) for text in texts])
    ids = torch.from_numpy(pad_arrays(texts, 0))
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


def pad_to_buckets(batch: Mapping[str, Any], longest: int) -> dict[str, Any]:  # Any: each task's TypedDict
    """Pad the texts of a batch to a multiple of ``TEXT_MULTIPLE``, but at most to ``longest``.

    ``positions`` and ``targets`` (B, R) of masked tokens are padded to a multiple of ``TARGET_MULTIPLE``. No loss
    depends on padding; a compiled block is recompiled for every new shape.
    """
    if "ids" not in batch:
        return dict(batch)
    length = batch["ids"].shape[1]
    bucket = max(length, min(-(-length // TEXT_MULTIPLE) * TEXT_MULTIPLE, longest))
    padded = {name: F.pad(batch[name], (0, bucket - length)) for name in TEXTS if name in batch}
    if "positions" in batch and "targets" in batch:
        missing = -batch["positions"].shape[1] % TARGET_MULTIPLE
        padded["positions"] = F.pad(batch["positions"], (0, missing), value=0)
        padded["targets"] = F.pad(batch["targets"], (0, missing), value=-100)
    return dict(batch) | padded
