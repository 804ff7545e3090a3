"""Checkpoints of a sharded task: each process writes its own shard, in the background."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from dualfuse import distributed as dist
from dualfuse.io import describe_space, size_of
from dualfuse.training.checkpoint import (
    JSON,
    NO_ROOM,
    SHARDS,
    begin,
    complete,
    optimizer_tensors,
    trained_parameters,
    write_state,
)


class ShardedCheckpoints:
    """Writes checkpoints in the background, one after the other, to a file system that all processes share."""

    def __init__(self) -> None:
        """All processes must call this."""
        self._shards = dist.ShardedTensors()
        self._partial, self._needed = Path(), 0

    def save(
        self,
        folder: Path,
        step: int,
        task: nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: Mapping[str, JSON],
        keep: int,
    ) -> None:
        """Copy everything to memory and start writing it, after the previous checkpoint is complete.

        The checkpoint gets its name when all processes have written their shards, so processes killed at any moment
        leave the earlier checkpoints intact. All processes must call this.
        """
        self.wait()
        partial, names = begin(folder, step, keep), trained_parameters(task, optimizer)
        tensors = {**task.state_dict(), **optimizer_tensors(task, optimizer)}
        self._partial, self._needed = partial, size_of(tensors.values())

        def finish() -> None:
            write_state(partial, step, names, extra)
            complete(partial, keep)

        dist.barrier()  # no process writes before all have removed the files of a killed run
        self._shards.write(tensors, partial / SHARDS, finish)

    def wait(self) -> None:
        """Wait until the last checkpoint is complete; raises ``OSError``, and removes it, if it cannot be written."""
        try:
            self._shards.wait()
        except OSError as error:
            if dist.rank() == 0:  # which learns of the error last, when the others have stopped writing
                shutil.rmtree(self._partial, ignore_errors=True)
            space = describe_space(self._partial, self._needed)
            raise OSError(f"{self._partial} could not be written ({error}); {space}. {NO_ROOM}") from error
