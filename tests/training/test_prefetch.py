"""Deliveries come to a device in order, each whole, whatever is read ahead."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dualfuse.data.loader import LoadedBatch, Skipped
from dualfuse.training.prefetch import prefetch

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="copies run beside the step on a GPU alone")


def loaded_batches(read: list[int], pinned: bool) -> Iterator[LoadedBatch]:
    """Return three batches and notes which were read."""
    for step in range(3):
        read.append(step)
        skipped = (Skipped(str(step), "broken", "another"),)
        made = LoadedBatch(step, {"image": torch.full((4, 1 << 18), step), "keys": (step,)}, skipped)
        yield made.pin_memory() if pinned else made


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=GPU)])
def test_batches_arrive_complete_and_in_order(kind: str) -> None:
    read: list[int] = []
    given = list(prefetch(loaded_batches(read, pinned=kind == "cuda"), torch.device(kind)))
    assert [loaded_batch.step for loaded_batch in given] == [0, 1, 2]
    for step, loaded_batch in enumerate(given):
        image, keys = loaded_batch.batch["image"], loaded_batch.batch["keys"]
        assert image.device.type == kind
        assert keys == (step,)
        assert torch.equal(image, torch.full_like(image, step))
        assert loaded_batch.skipped == (Skipped(str(step), "broken", "another"),)


@pytest.mark.parametrize(("kind", "ahead"), [("cpu", 0), pytest.param("cuda", 1, marks=GPU)])
def test_number_of_batches_read_ahead(kind: str, ahead: int) -> None:
    read: list[int] = []
    stream = prefetch(loaded_batches(read, pinned=kind == "cuda"), torch.device(kind))
    assert next(stream).step == 0
    assert len(read) == 1 + ahead


@GPU
def test_loaders_pin_batches() -> None:
    made = next(loaded_batches([], pinned=True))
    assert made.batch["image"].is_pinned()
    assert made.batch["keys"] == (0,)
