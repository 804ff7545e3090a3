"""Tensors shared out among processes, on disk: written by all at once, in the background, read by any number."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as td
from torch import Tensor

from dualfuse.distributed.process_group import rank, world_size


class ShardedTensors:
    """Writes one set of tensors after the other to a file system that all processes see."""

    def __init__(self) -> None:
        """All processes of a world of several must take part: they get channels that training does not speak on."""
        group = td.new_group(backend="gloo")
        assert isinstance(group, td.ProcessGroup)  # which every process of the world is in
        self._group = group
        self._last = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._written: Future[None] | None = None

    def write(self, tensors: Mapping[str, Tensor], folder: Path, then: Callable[[], None]) -> None:
        """Copy ``tensors`` to memory, and writes them to ``folder`` while the caller goes on.

        Waits for the one before it. ``then`` is called in the first process when all have written theirs.
        """
        from torch.distributed.checkpoint.state_dict_saver import async_save  # here: it takes a second

        self.wait()
        written = async_save(dict(tensors), checkpoint_id=folder, process_group=self._group)
        assert isinstance(written, Future)  # as it is without a stager of one's own
        self._written = self._last.submit(_finish, written, then)

    def wait(self) -> None:
        """Wait until the last one is on disk; raises ``OSError``, in all processes, if one could not write."""
        from torch.distributed.checkpoint.api import CheckpointException

        written, self._written = self._written, None
        try:
            if written is not None:
                written.result()
        except CheckpointException as error:
            reasons = "; ".join(f"process {number}: {failure[0]}" for number, failure in error.failures.items())
            raise OSError(reasons) from error


def _finish(written: Future[object], then: Callable[[], None]) -> None:
    written.result()  # in the first process: of all, which it has heard of
    if rank() == 0:
        then()


def read_shards(folder: Path, wanted: Callable[[str, torch.Size], Tensor | None]) -> dict[str, Tensor]:
    """Return the tensors in ``folder``, whatever number of processes wrote them.

    ``wanted`` names the tensor, for a name and a shape, that one is to be shared out and placed like; None: it is
    read as a whole, to the CPU. All processes must take part.
    """
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    from dualfuse.distributed.sharded_index import ShardReader

    reader = ShardReader(folder)
    tensors: dict[str, Tensor] = {}
    for name, kept in reader.read_metadata().state_dict_metadata.items():
        if isinstance(kept, TensorStorageMetadata):
            model, dtype = wanted(name, kept.size), kept.properties.dtype
            empty = torch.empty(kept.size, dtype=dtype) if model is None else torch.empty_like(model, dtype=dtype)
            tensors[name] = empty.detach()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process may read what many wrote
        load(dict(tensors), storage_reader=reader, no_dist=world_size() == 1)
    return tensors
