"""The best step of a run, chosen on the validation set."""

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

LOWER_IS_BETTER = ("loss", "error")
"""Endings of the names of metrics to minimize; all others are maximized."""


@dataclass(frozen=True)
class BestModel:
    """The best step so far."""

    by: str
    """Pattern of metric names; the mean of these metrics is compared. Empty: the best model is not kept."""
    value: float | None = None
    """The best mean so far; None before the first validation."""
    step: int = 0

    @classmethod
    def restored(cls, by: str, extra: Mapping[str, JSON]) -> BestModel:
        """Return the best step that a checkpoint recorded, unless it was chosen by other metrics."""
        match extra.get("best"):
            case {"by": str(name), "value": float(value), "step": int(step)} if by in (name, metric_name(name)):
                return cls(by, value, step)
            case _:
                return cls(by)

    def extra(self) -> dict[str, JSON]:
        """Return the entry of a checkpoint that :meth:`restored` reads."""
        return {"best": asdict(self)} if self.value is not None else {}

    def after(self, metrics: Mapping[str, float], step: int) -> BestModel:
        """Return the better of this step and a step with these metrics, on a tie the earlier one.

        Raises ``DualfuseError`` if ``by`` matches no metric.
        """
        value = headline(metrics, self.by)
        sign = -1 if self.by.endswith(LOWER_IS_BETTER) else 1
        if math.isnan(value) or (self.value is not None and sign * value <= sign * self.value):
            return self
        return BestModel(self.by, value, step)


def keep_best(best: BestModel, metrics: Mapping[str, float], step: int, save: Callable[[], None]) -> BestModel:
    """Call ``save`` on all processes if the model is the best so far on the first one, and return the new best."""
    if not best.by:
        return best
    better = best.after(metrics, step)
    if not dist.any_rank(dist.rank() == 0 and better != best):
        return best
    save()
    logger.info("step %s is the best so far: %s %.4f", step, best.by, better.value)
    return better


def headline(metrics: Mapping[str, float], by: str) -> float:
    """Return the mean of the metrics whose names match a pattern; raises ``DualfuseError`` if there is none."""
    values = [value for name, value in metrics.items() if fnmatchcase(name, by)]
    if not values:
        raise DualfuseError(
            f"run.best is {by!r}, but the validation metrics are {', '.join(metrics) or 'none'}; name one, "
            "or a pattern like */R@* for the mean of several"
        )
    return sum(values) / len(values)
