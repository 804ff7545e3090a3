"""Pairs as tensors: one row, and many rows as a batch."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.data.text.padding import pad_texts
from dualfuse.data.text.tokenizer import pad_arrays


class PairExample(TypedDict):
    """One pair: pixels (3, H, W), tokens (T,), the masked ones, their labels, who it is, and of which set."""

    image: Tensor
    ids: np.ndarray
    masked_ids: np.ndarray
    labels: np.ndarray
    image_id: int
    text_id: int
    source: int


class PairBatch(TypedDict):
    """B pairs: image (B, 3, H, W); ids, mask, masked_ids (B, T); image_id, text_id, source (B,).

    ``positions`` (B, R) are the positions of the masked words, ``targets`` (B, R) what stood there; -100 where a text has
    fewer.
    """

    image: Tensor
    ids: Tensor
    mask: Tensor
    masked_ids: Tensor
    positions: Tensor
    targets: Tensor
    image_id: Tensor
    text_id: Tensor
    source: Tensor


def collate_pairs(rows: Sequence[PairExample]) -> PairBatch:
    """Make a batch of rows, with the texts padded to the longest of them."""
    ids, mask = pad_texts([row["ids"] for row in rows])
    places, targets = mlm_positions([row["labels"] for row in rows])
    return {
        "image": torch.stack([row["image"] for row in rows]),
        "ids": ids,
        "mask": mask,
        "masked_ids": torch.from_numpy(pad_arrays([row["masked_ids"] for row in rows], 0)),
        "positions": places,
        "targets": targets,
        "image_id": torch.tensor([row["image_id"] for row in rows]),
        "text_id": torch.tensor([row["text_id"] for row in rows]),
        "source": torch.tensor([row["source"] for row in rows]),
    }


def mlm_positions(labels: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return ``rows`` and ``targets`` of :class:`PairBatch` for labels (T,) that are -100 at unmasked words."""
    places = [np.flatnonzero(label != -100) for label in labels]
    targets = [label[place] for label, place in zip(labels, places, strict=True)]
    return torch.from_numpy(pad_arrays(places, 0)), torch.from_numpy(pad_arrays(targets, -100))


def content_id(content: bytes) -> int:
    """Return a 63-bit number by which equal contents know each other."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big") >> 1


def pad_to_global_length(batch: PairBatch) -> PairBatch:
    """Pad the texts to the longest of all processes, so that rows can be exchanged."""
    missing = dist.all_reduce_max(batch["ids"].shape[1]) - batch["ids"].shape[1]
    if not missing:
        return batch
    longer = batch.copy()
    longer["ids"], longer["masked_ids"] = (F.pad(batch[name], (0, missing)) for name in ("ids", "masked_ids"))
    longer["mask"] = F.pad(batch["mask"], (0, missing))
    return longer
