"""The next micro-batch travels to the device while this one is computed with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dualfuse.data.loader import LoadedBatch
from dualfuse.tasks.base import Batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch; those in pinned memory travel while the processor goes on."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def prefetch(stream: Iterator[LoadedBatch], device: torch.device) -> Iterator[LoadedBatch]:
    """Return the deliveries of a stream with their tensors on ``device``, in order.

    On a GPU the next one is copied, in a stream of its own, before this one is given; so it is read from ``stream``
    one delivery earlier. On a processor there is nothing to copy, and nothing is read ahead.
    """
    if device.type != "cuda":
        for loaded_batch in stream:
            yield replace(loaded_batch, batch=to_device(loaded_batch.batch, device))
        return
    copying = torch.cuda.Stream(device)
    coming = _copied(next(stream, None), copying, device)
    while coming is not None:
        current = torch.cuda.current_stream(device)
        current.wait_stream(copying)
        for value in coming.batch.values():
            if isinstance(value, Tensor):
                value.record_stream(current)  # or its memory would be given away while this stream still reads it
        ready, coming = coming, _copied(next(stream, None), copying, device)
        yield ready


def _copied(loaded_batch: LoadedBatch | None, copying: torch.cuda.Stream, device: torch.device) -> LoadedBatch | None:
    if loaded_batch is None:
        return None
    with torch.cuda.stream(copying):
        return replace(loaded_batch, batch=to_device(loaded_batch.batch, device))
