"""Deliveries come to a device in order, each whole, whatever is read ahead."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dualfuse.data.loader import Delivery, Skipped
from dualfuse.engine.ahead import on_device

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="copies run beside the step on a GPU alone")


def deliveries(read: list[int], pinned: bool) -> Iterator[Delivery]:
    """Gives three batches and notes which were read."""
    for step in range(3):
        read.append(step)
        skipped = (Skipped(str(step), "broken", "another"),)
        made = Delivery(step, {"image": torch.full((4, 1 << 18), step), "keys": (step,)}, skipped)
        yield made.pin_memory() if pinned else made


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=GPU)])
def test_each_comes_in_order_and_whole(kind: str) -> None:
    read: list[int] = []
    given = list(on_device(deliveries(read, pinned=kind == "cuda"), torch.device(kind)))
    assert [delivery.step for delivery in given] == [0, 1, 2]
    for step, delivery in enumerate(given):
        image, keys = delivery.batch["image"], delivery.batch["keys"]
        assert image.device.type == kind
        assert keys == (step,)
        assert torch.equal(image, torch.full_like(image, step))
        assert delivery.skipped == (Skipped(str(step), "broken", "another"),)


@pytest.mark.parametrize(("kind", "ahead"), [("cpu", 0), pytest.param("cuda", 1, marks=GPU)])
def test_how_far_is_read_ahead(kind: str, ahead: int) -> None:
    read: list[int] = []
    stream = on_device(deliveries(read, pinned=kind == "cuda"), torch.device(kind))
    assert next(stream).step == 0
    assert len(read) == 1 + ahead


@GPU
def test_loaders_pin_what_they_deliver() -> None:
    made = next(deliveries([], pinned=True))
    assert made.batch["image"].is_pinned()
    assert made.batch["keys"] == (0,)
