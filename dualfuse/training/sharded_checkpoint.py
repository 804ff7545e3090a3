"""Checkpoints of a task that is shared out among processes: each writes its own part, while training goes on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from dualfuse import distributed as dist
from dualfuse.io import describe_space, size_of
from dualfuse.training.checkpoint import JSON, NO_ROOM, SHARDS, begin, complete, describe_state, moments_of, trained


class ShardedCheckpoints:
    """Writes one checkpoint after the other, in the background, to a file system that all processes see."""

    def __init__(self) -> None:
        """All processes must take part."""
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
        """Copy everything to memory and lets it be written; waits for the checkpoint before it.

        It is there when all processes have written their parts: until then it has another name, so processes killed
        at any moment leave the earlier ones as they were. All processes must take part.
        """
        self.wait()
        partial, names = begin(folder, step, keep), trained(task, optimizer)
        tensors = {**task.state_dict(), **moments_of(task, optimizer)}
        self._partial, self._needed = partial, size_of(tensors.values())

        def finish() -> None:
            describe_state(partial, step, names, extra)
            complete(partial, keep)

        dist.barrier()  # nobody writes before all have removed what a kill left
        self._shards.write(tensors, partial / SHARDS, finish)

    def wait(self) -> None:
        """Wait until the last one is there; raises ``OSError`` where it could not be written: nothing of it stays."""
        try:
            self._shards.wait()
        except OSError as error:
            said = f"{self._partial} could not be written ({error}); {describe_space(self._partial, self._needed)}. {NO_ROOM}"
            if dist.rank() == 0:  # which hears of it last, when the others write no more
                shutil.rmtree(self._partial, ignore_errors=True)
            raise OSError(said) from error
