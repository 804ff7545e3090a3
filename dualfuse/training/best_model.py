"""The best step of a run, chosen on the validation set."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from hashlib import sha256

from dualfuse import distributed as dist
from dualfuse.config import JSON
from dualfuse.data.map_dataset import MapDataset
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.runner import Plan
from dualfuse.io import listing
from dualfuse.metrics.base import selects
from dualfuse.recipe import Recipe, Run
from dualfuse.upgrade import METRICS

logger = logging.getLogger(__name__)

NOTE = "best.json"
"""Step, score and metrics of the best model, in its folder."""


@dataclass(frozen=True)
class BestModel:
    """The best step so far."""

    by: str
    """Pattern of metric names; the mean of these metrics is compared. Empty: the best model is not kept."""
    value: float | None = None
    """The best mean so far; None before the first validation."""
    step: int = 0
    higher_is_better: bool = True
    validation: str = ""
    """Digest of the validation set and of the candidates that are re-ranked; scores on others cannot be compared."""

    def restored(self, extra: Mapping[str, JSON]) -> BestModel:
        """Return the best step that a checkpoint recorded, unless other metrics or another validation set chose it."""
        match extra.get("best"):
            case {"by": str(name), "value": float(value), "step": int(step), **others} if (
                self.by in (name, METRICS.get(name)) and others.get("validation", self.validation) == self.validation
            ):
                return replace(self, value=value, step=step)
            case None:
                return self
            case _:
                logger.info("run.best or the validation set has changed: OUT/best starts a new comparison")
                return self

    def is_exhausted(self, run: Run, step: int) -> bool:
        """Return whether ``run.early_stopping`` evaluations in a row were not better, after ``step`` steps."""
        return (
            run.early_stopping > 0
            and self.value is not None
            and step - self.step >= run.early_stopping * run.eval_every
        )

    def extra(self) -> dict[str, JSON]:
        """Return the entry of a checkpoint that :meth:`restored` reads."""
        if self.value is None:
            return {}
        return {"best": {"by": self.by, "value": self.value, "step": self.step, "validation": self.validation}}

    def after(self, metrics: Mapping[str, float], step: int) -> BestModel:
        """Return the better of this step and a step with these metrics, on a tie the earlier one.

        Raises ``DualfuseError`` if ``by`` matches no metric.
        """
        value = headline(metrics, self.by)
        sign = 1 if self.higher_is_better else -1
        if math.isnan(value) or (self.value is not None and sign * value <= sign * self.value):
            return self
        return replace(self, value=value, step=step)


def check_best(recipe: Recipe) -> bool:
    """Return whether higher values of the metrics of ``run.best`` are better.

    Raises ``DualfuseError``, before training, if there is no validation set, if the task declares no such metric, or if
    the metrics have different directions or names of different depth, such as recall before and after re-ranking; and
    if there is early stopping without evaluations that could end the run.
    """
    by = recipe.run.best
    if recipe.run.early_stopping and not (by and recipe.run.eval_every):
        raise DualfuseError(
            f"run.early_stopping is {recipe.run.early_stopping}, but no evaluation can end the run: set run.best, and "
            "run.eval_every or run.eval_epochs; or --run.early-stopping 0"
        )
    if not by:
        return True
    if not recipe.data.validation:
        raise DualfuseError(
            f"run.best is {by!r}, but there is no validation set to compare models on; give --data.validation DATA, or "
            "--run.best '' to keep the last model only"
        )
    declared = recipe.task.metrics(Plan(rerank=recipe.run.eval_rerank))
    matched = [info for info in declared if info.matches(by)]
    directions = {info.higher_is_better for info in matched}
    if not directions:
        names = [info.name for info in declared]
        close = get_close_matches(by, names, n=1)
        raise DualfuseError(
            f"run.best is {by!r}, but the validation metrics are {', '.join(names)}; "
            + (f"did you mean {close[0]}?" if close else "name one, or a pattern like */R@* for the mean of several")
            + f" (those of a third-party task are declared by {type(recipe.task).__name__}.metrics)"
        )
    if len({info.name.count("/") for info in matched}) > 1:
        names = listing([info.name for info in matched], 20)
        raise DualfuseError(f"run.best {by!r} matches metrics of different kinds: {names}; give a pattern for one kind")
    if len(directions) > 1:
        raise DualfuseError(f"run.best {by!r} matches metrics of which some are better if higher, others if lower")
    return directions.pop()


def new_comparison(recipe: Recipe, validation: Sequence[MapDataset]) -> BestModel:
    """Return the state before the first validation on the opened set ``validation``."""
    if not recipe.run.best:
        return BestModel("")
    content = [[sorted(each.digests().values()) for each in validation], recipe.run.eval_rerank]
    digest = sha256(json.dumps(content).encode()).hexdigest()[:16]
    return BestModel(recipe.run.best, higher_is_better=check_best(recipe), validation=digest)


def keep_best(
    best: BestModel, metrics: Mapping[str, float], step: int, save: Callable[[dict[str, JSON]], None]
) -> BestModel:
    """Call ``save`` on all processes if the model is the best so far on the first one, and return the new best.

    ``save`` takes the notes to write into the model folder, by file name.
    """
    if not best.by:
        return best
    better = best.after(metrics, step)
    if not dist.any_rank(dist.rank() == 0 and better != best):
        return best
    save({NOTE: {"step": step, "metric": best.by, "value": better.value, "metrics": dict(metrics)}})
    logger.info("step %s is the best so far: %s %.4f", step, best.by, better.value)
    return better


def headline(metrics: Mapping[str, float], by: str) -> float:
    """Return the mean of the metrics whose names match a pattern; raises ``DualfuseError`` if there is none."""
    values = [value for name, value in metrics.items() if selects(by, name)]
    if not values:
        raise DualfuseError(
            f"run.best is {by!r}, but the validation metrics are {', '.join(metrics) or 'none'}; name one, "
            "or a pattern like */R@* for the mean of several"
        )
    return sum(values) / len(values)
