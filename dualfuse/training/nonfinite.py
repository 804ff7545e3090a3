"""A loss or a gradient that is no finite number: the run stops, or leaves the step out, by rule and on record."""

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
"""What every task calls it in its log."""
PATIENCE = 10  # steps left out one after the other that are taken for accidents; more mean that the run has failed
NONE = 2**62
REASON = "the loss or the gradient of its step is not finite"


@dataclass
class NonfiniteGuard:
    """Watches the numbers of each step, and notes the samples of one that is not finite.

    "stop" needs no device to be waited for: it marks on the device which step was the first, and looks when the log is
    written and before anything is saved. Until then the weights may be ruined; they are never kept. "skip" must know
    before the weights change, so it waits for the device in every step. ``keys`` gives the samples that this process
    had at a step, counted from 0.
    """

    rule: Literal["stop", "skip"]
    keys: Callable[[int], Sequence[str]]
    log: Log
    ledger: SkippedLog
    skipped: int = 0
    """Steps left out one after the other, up to now."""
    _seen: list[Tensor] = field(default_factory=list[Tensor])
    _first: Tensor | None = None

    def watch(self, numbers: Mapping[str, Tensor]) -> None:
        """Take the log of one micro-batch."""
        if LOSS in numbers:
            self._seen.append(numbers[LOSS].detach().float())

    def passes(self, norm: Tensor, step: int) -> bool:
        """Return whether the optimiser may change the weights in ``step``, counted from 1, the same in all processes.

        ``norm`` is that of the gradient. Raises ``DualfuseError`` after ``PATIENCE`` steps that it may not.
        """
        is_broken = ~torch.stack([norm.float(), *(loss.to(norm.device) for loss in self._seen)]).isfinite().all()
        self._seen.clear()
        if self.rule == "stop":
            before = torch.full_like(norm, NONE, dtype=torch.int64) if self._first is None else self._first
            self._first = torch.where(is_broken & (before == NONE), step, before)
            return True
        if not dist.any_rank(bool(is_broken)):
            self.skipped = 0
            return True
        self.skipped += 1
        self.log.add({"count/steps_left_out": 1 / dist.world_size()})
        some = self._note(step)
        if self.skipped == PATIENCE:
            raise DualfuseError(
                f"training has failed: the loss or the gradient of {PATIENCE} steps one after the other, up to step "
                f"{step}, is not finite; the last one had {some}. Go on from a checkpoint with a lower optim.lr"
            )
        return False

    def check(self) -> None:
        """Raise ``DualfuseError``, in all processes, for the first step since the last check that was not finite."""
        first = NONE if self._first is None else int(self._first)
        self._first = None
        step = -dist.all_reduce_max(-first)
        if step < NONE:
            raise DualfuseError(
                f"training has failed: the loss or the gradient of step {step} is not finite. It had {self._note(step)}"
                ". Nothing was saved after it and earlier checkpoints are kept. Look at these samples, then give the "
                "same command with --run.on-nonfinite skip to leave such steps out, or start anew with a lower optim.lr "
                "or with --optim.grad-clip-norm 1"
            )

    def _note(self, step: int) -> str:
        """Write the samples of a step into the ledger, and gives the first of them for a message."""
        keys = self.keys(step - 1)
        for key in keys:
            self.ledger.append(step, key, REASON, replacement="")
        return f"the samples {listing(keys)} (all are in {SKIPPED})"
