"""Padding fills up with a value and leaves the content unchanged."""

from __future__ import annotations

import numpy as np
import torch

from dualfuse.data.text.padding import pad_arrays, pad_to_buckets


def batch(length: int, masked: int) -> dict[str, torch.Tensor]:
    return {
        "ids": torch.full((2, length), 7),
        "masked_ids": torch.full((2, length), 4),
        "mask": torch.ones(2, length, dtype=torch.bool),
        "positions": torch.full((2, masked), 1),
        "targets": torch.full((2, masked), 9),
        "image": torch.zeros(2, 3, 4, 4),
    }


def test_arrays_are_padded_to_the_longest() -> None:
    arrays = [np.array([1, 2, 3]), np.array([4]), np.array([], dtype=np.int64)]
    padded = pad_arrays(arrays, value=9)
    assert padded.dtype == np.int64 and padded.tolist() == [[1, 2, 3], [4, 9, 9], [9, 9, 9]]


def test_buckets_have_few_lengths() -> None:
    shapes = {tuple(pad_to_buckets(batch(length, 1), 40)["ids"].shape) for length in range(2, 41)}
    assert shapes == {(2, 16), (2, 32), (2, 40)}
    assert {pad_to_buckets(batch(9, number), 40)["positions"].shape[1] for number in range(20)} == {0, 8, 16, 24}


def test_buckets_only_add_padding() -> None:
    original = batch(10, 3)
    padded = pad_to_buckets(original, 40)
    assert padded.keys() == original.keys() and padded["image"] is original["image"]
    for name in ("ids", "masked_ids", "mask", "positions", "targets"):
        size = original[name].shape[1]
        assert torch.equal(padded[name][:, :size], original[name])
        assert (padded[name][:, size:] == (-100 if name == "targets" else 0)).all()


def test_full_buckets_and_batches_without_texts_are_unchanged() -> None:
    original = batch(40, 8)
    assert all(torch.equal(value, original[name]) for name, value in pad_to_buckets(original, 40).items())
    hidden = {"image": torch.zeros(1, 3, 4, 4), "positions": torch.ones(1, 5, dtype=torch.long)}
    assert pad_to_buckets(hidden, 40) == hidden
