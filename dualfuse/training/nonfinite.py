"""Losses and gradients that are not finite: the run stops, or skips the step, and the samples are recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dualfuse import distributed as dist
from dualfuse.errors import DualfuseError
from dualfuse.io import listing
from dualfuse.training.run_log import SKIPPED, Log, SkippedLog

LOSS = "loss"
"""The key of the loss in the log of every task."""
MAX_SKIPPED = 10  # consecutive steps; with this many the run has failed
NONE = 2**62
REASON = "the loss or the gradient of its step is not finite"


@dataclass
class NonfiniteGuard:
    """Checks loss and gradient norm of each step, and records the samples of a step where they are not finite.

    The rule "stop" does not synchronize with the device: the first such step is marked on the device, and read when
    the log is written and before anything is saved. Until then the weights may be ruined, but they are never saved.
    The rule "skip" synchronizes in every step, because it must decide before the weights change. ``keys`` returns the
    samples of this process at a 0-based step.
    """

    rule: Literal["stop", "skip"]
    keys: Callable[[int], Sequence[str]]
    log: Log
    skipped_log: SkippedLog
    skipped: int = 0
    """Consecutive steps skipped so far."""
    _losses: list[Tensor] = field(default_factory=list[Tensor])
    _first: Tensor | None = None

    def watch(self, numbers: Mapping[str, Tensor]) -> None:
        """Record the loss of one micro-batch from its log."""
        if LOSS in numbers:
            self._losses.append(numbers[LOSS].detach().float())

    def passes(self, norm: Tensor, step: int) -> bool:
        """Return whether the optimizer may update the weights in ``step`` (1-based), the same on all processes.

        ``norm`` is the gradient norm. Raises ``DualfuseError`` after ``MAX_SKIPPED`` consecutive steps without an
        update.
        """
        is_broken = ~torch.stack([norm.float(), *(loss.to(norm.device) for loss in self._losses)]).isfinite().all()
        self._losses.clear()
        if self.rule == "stop":
            before = torch.full_like(norm, NONE, dtype=torch.int64) if self._first is None else self._first
            self._first = torch.where(is_broken & (before == NONE), step, before)
            return True
        if not dist.any_rank(bool(is_broken)):
            self.skipped = 0
            return True
        self.skipped += 1
        self.log.add({"count/steps_skipped": 1 / dist.world_size()})
        samples = self._record(step)
        if self.skipped == MAX_SKIPPED:
            raise DualfuseError(
                f"training has failed: the loss or the gradient of {MAX_SKIPPED} consecutive steps, up to step {step}, "
                f"is not finite; the last step had {samples}. Resume from a checkpoint with a lower optim.lr"
            )
        return False

    def check(self) -> None:
        """Raise ``DualfuseError``, on all processes, if a step since the last check was not finite."""
        first = NONE if self._first is None else int(self._first)
        self._first = None
        step = -dist.all_reduce_max(-first)
        if step < NONE:
            raise DualfuseError(
                f"training has failed: the loss or the gradient of step {step} is not finite. It had "
                f"{self._record(step)}. Nothing was saved after it and earlier checkpoints are kept. Check these "
                "samples, then run the same command with --run.on-nonfinite skip to skip such steps, or start anew "
                "with a lower optim.lr or with --optim.grad-clip-norm 1"
            )

    def _record(self, step: int) -> str:
        """Write the samples of a step to the log of skipped samples, and return a list of them for a message."""
        keys = self.keys(step - 1)
        for key in keys:
            self.skipped_log.append(step, key, REASON, replacement="")
        return f"the samples {listing(keys)} (all are in {SKIPPED})"
