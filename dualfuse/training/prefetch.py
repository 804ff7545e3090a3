"""Copy the next micro-batch to the device during the computation on the current one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dualfuse.data.loader import LoadedBatch, to_device


def prefetch(stream: Iterator[LoadedBatch], device: torch.device) -> Iterator[LoadedBatch]:
    """Yield the batches of ``stream`` with their tensors on ``device``, in order.

    On a GPU the next batch is read and copied, in its own CUDA stream, before the current one is yielded. On a CPU
    nothing is copied or read ahead.
    """
    if device.type != "cuda":
        for loaded_batch in stream:
            yield replace(loaded_batch, batch=to_device(loaded_batch.batch, device))
        return
    copying = torch.cuda.Stream(device)
    upcoming = _copy(next(stream, None), copying, device)
    while upcoming is not None:
        current = torch.cuda.current_stream(device)
        current.wait_stream(copying)
        for value in upcoming.batch.values():
            if isinstance(value, Tensor):
                value.record_stream(current)  # else its memory could be reused while this stream still reads it
        ready, upcoming = upcoming, _copy(next(stream, None), copying, device)
        yield ready


def _copy(loaded_batch: LoadedBatch | None, copying: torch.cuda.Stream, device: torch.device) -> LoadedBatch | None:
    if loaded_batch is None:
        return None
    with torch.cuda.stream(copying):
        return replace(loaded_batch, batch=to_device(loaded_batch.batch, device))
