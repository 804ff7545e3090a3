"""Sharded tensors on disk: written by all processes in the background, and read by any number of processes."""

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
    """Writes sharded tensors to a shared file system, one set at a time."""

    def __init__(self) -> None:
        """All processes must take part; writing gets a process group of its own."""
        group = td.new_group(backend="gloo")
        assert isinstance(group, td.ProcessGroup)  # every process is a member
        self._group = group
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._pending: Future[None] | None = None

    def write(self, tensors: Mapping[str, Tensor], folder: Path, then: Callable[[], None]) -> None:
        """Copy ``tensors`` to memory, and write them to ``folder`` in the background, after the previous set.

        ``then`` is called on rank 0 when all processes have written theirs.
        """
        from torch.distributed.checkpoint.state_dict_saver import async_save  # takes a second

        self.wait()
        written = async_save(dict(tensors), checkpoint_id=folder, process_group=self._group)
        assert isinstance(written, Future)  # without a custom stager
        self._pending = self._executor.submit(_finish, written, then)

    def wait(self) -> None:
        """Wait until the last set is on disk. Raises ``OSError`` on all processes if one could not write."""
        from torch.distributed.checkpoint.api import CheckpointException

        written, self._pending = self._pending, None
        try:
            if written is not None:
                written.result()
        except CheckpointException as error:
            reasons = "; ".join(f"process {number}: {failure[0]}" for number, failure in error.failures.items())
            raise OSError(reasons) from error


def _finish(written: Future[object], then: Callable[[], None]) -> None:
    written.result()  # on rank 0: once all processes are done
    if rank() == 0:
        then()


def read_shards(
    folder: Path,
    like: Callable[[str, torch.Size], Tensor | None],
    wanted: Callable[[str], bool] = bool,
) -> dict[str, Tensor]:
    """Return the tensors in ``folder``, written by any number of processes; all processes must take part.

    ``like`` returns, for a name and a shape, the tensor whose sharding and device to use; None reads the full tensor to
    the CPU. Only tensors whose names are ``wanted`` are read; by default all.
    """
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    from dualfuse.distributed.sharded_index import ShardReader

    reader = ShardReader(folder)
    tensors: dict[str, Tensor] = {}
    for name, stored in reader.read_metadata().state_dict_metadata.items():
        if isinstance(stored, TensorStorageMetadata) and wanted(name):
            other, dtype = like(name, stored.size), stored.properties.dtype
            empty = torch.empty(stored.size, dtype=dtype) if other is None else torch.empty_like(other, dtype=dtype)
            tensors[name] = empty.detach()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "torch.distributed is disabled"
        )  # a single process may read shards of several
        load(dict(tensors), storage_reader=reader, no_dist=world_size() == 1)
    return tensors
