"""Padding to a few lengths: nothing that is read changes."""

from __future__ import annotations

import torch

from dualfuse.data.text.length_buckets import in_buckets


def batch(length: int, masked: int) -> dict[str, torch.Tensor]:
    return {
        "ids": torch.full((2, length), 7),
        "masked_ids": torch.full((2, length), 4),
        "mask": torch.ones(2, length, dtype=torch.bool),
        "positions": torch.full((2, masked), 1),
        "targets": torch.full((2, masked), 9),
        "image": torch.zeros(2, 3, 4, 4),
    }


def test_lengths_become_few() -> None:
    shapes = {tuple(in_buckets(batch(length, 1), 40)["ids"].shape) for length in range(2, 41)}
    assert shapes == {(2, 16), (2, 32), (2, 40)}
    assert {in_buckets(batch(9, number), 40)["positions"].shape[1] for number in range(20)} == {0, 8, 16, 24}


def test_what_is_added_is_padding() -> None:
    given = batch(10, 3)
    made = in_buckets(given, 40)
    assert made.keys() == given.keys() and made["image"] is given["image"]
    for name in ("ids", "masked_ids", "mask", "positions", "targets"):
        size = given[name].shape[1]
        assert torch.equal(made[name][:, :size], given[name])
        assert (made[name][:, size:] == (-100 if name == "targets" else 0)).all()


def test_a_text_that_is_long_enough_and_batches_without_texts_stay() -> None:
    given = batch(40, 8)
    assert all(torch.equal(value, given[name]) for name, value in in_buckets(given, 40).items())
    hidden = {"image": torch.zeros(1, 3, 4, 4), "positions": torch.ones(1, 5, dtype=torch.long)}
    assert in_buckets(hidden, 40) == hidden
