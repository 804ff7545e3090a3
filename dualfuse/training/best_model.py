"""The best step of a run, by its validation set: never by the test set, which would then say too much of itself."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

from dualfuse import distributed as dist
from dualfuse.errors import DualfuseError
from dualfuse.training.checkpoint import JSON
from dualfuse.upgrade import metric_name

logger = logging.getLogger(__name__)

LEAST = ("loss", "error")
"""What validation numbers end in of which less is better."""


@dataclass(frozen=True)
class BestModel:
    """The best step so far."""

    by: str
    """Pattern of the validation numbers whose mean is compared; empty: none."""
    value: float | None = None
    """That mean; None before the first validation."""
    step: int = 0

    @classmethod
    def restored(cls, by: str, extra: Mapping[str, JSON]) -> BestModel:
        """Go on with what a checkpoint holds of it, unless that was judged by something else."""
        match extra.get("best"):
            case {"by": str(name), "value": float(value), "step": int(step)} if by in (name, metric_name(name)):
                return cls(by, value, step)
            case _:
                return cls(by)

    def extra(self) -> dict[str, JSON]:
        """Return what a checkpoint keeps of it."""
        return {"best": asdict(self)} if self.value is not None else {}

    def after(self, metrics: Mapping[str, float], step: int) -> BestModel:
        """Return itself, or what a step with these validation numbers makes of it if they are better.

        The earlier one of two equal steps stays. ``DualfuseError`` if no number is called as ``by`` says.
        """
        value = headline(metrics, self.by)
        sign = -1 if self.by.endswith(LEAST) else 1
        if math.isnan(value) or (self.value is not None and sign * value <= sign * self.value):
            return self
        return BestModel(self.by, value, step)


def keep_best(best: BestModel, metrics: Mapping[str, float], step: int, save: Callable[[], None]) -> BestModel:
    """Let ``save`` write the model if it is the best so far by what the first process found; gives the best then."""
    if not best.by:
        return best
    better = best.after(metrics, step)
    if not dist.any_rank(dist.rank() == 0 and better != best):
        return best
    save()
    logger.info("step %s is the best so far: %s %.4f", step, best.by, better.value)
    return better


def headline(metrics: Mapping[str, float], by: str) -> float:
    """Return the mean of the numbers whose names match a pattern; ``DualfuseError`` if there is none."""
    found = [value for name, value in metrics.items() if fnmatchcase(name, by)]
    if not found:
        raise DualfuseError(
            f"run.best is {by!r}, but its validation numbers are {', '.join(metrics) or 'none'}; name one, "
            "or a pattern like */R@* for the mean of several"
        )
    return sum(found) / len(found)
