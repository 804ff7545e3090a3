"""Checkpoints of a task that is shared out among processes: each writes its own part, while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from dualfuse import dist
from dualfuse.engine.checkpoint import JSON, NO_ROOM, SHARDS, begin, complete, describe_state, moments_of, trained


class ShardedCheckpoints:
    """Writes one checkpoint after the other, in the background, to a file system that all processes see."""

    def __init__(self) -> None:
        """All processes must take part."""
        self._shards = dist.Shards()

    def save(
        self,
        folder: Path,
        step: int,
        task: nn.Module,
        optimizer: torch.optim.Optimizer,
        extra: Mapping[str, JSON],
        keep: int,
    ) -> None:
        """Copies everything to memory and lets it be written; waits for the checkpoint before it.

        It is there when all processes have written their parts: until then it has another name, so processes killed
        at any moment leave the earlier ones as they were. All processes must take part.
        """
        self.wait()
        partial, names = begin(folder, step, keep), trained(task, optimizer)

        def finish() -> None:
            describe_state(partial, step, names, extra)
            complete(partial, keep)

        dist.barrier()  # nobody writes before all have removed what a kill left
        self._shards.write({**task.state_dict(), **moments_of(task, optimizer)}, partial / SHARDS, finish)

    def wait(self) -> None:
        """Waits until the last one is there; raises ``OSError`` where it could not be written."""
        try:
            self._shards.wait()
        except OSError as error:
            raise OSError(f"a checkpoint could not be written: {error}. {NO_ROOM}") from error
