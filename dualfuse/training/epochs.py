"""Steps from epochs: the length of a run that is stated in passes over its training data."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.recipe import Recipe
from dualfuse.training.dataloader import count_samples
from dualfuse.training.resume_checks import stored_recipe

logger = logging.getLogger(__name__)


def with_steps(recipe: Recipe, out: Path) -> Recipe:
    """Return the recipe with ``run.steps`` and ``run.eval_every`` of its epochs, and log the arithmetic.

    One epoch is as many samples as the training sets have together, whatever their weights. A run that ``out``
    contains keeps its steps, so that a finished one needs no data; changed data is reported by the checks of resuming.
    Every process must call this.
    """
    run = recipe.run
    if not (run.epochs or run.eval_epochs):
        return recipe
    stored = stored_recipe(out)
    if stored is not None and _has_same_epochs(stored, recipe):
        eval_every = stored.run.eval_every if run.eval_epochs else run.eval_every
        return replace(recipe, run=replace(run, steps=stored.run.steps, eval_every=eval_every))
    if not recipe.data.train:
        raise DualfuseError(f"no training data: give --data.train {recipe.task.training_data}")
    samples, batch = count_samples(recipe), recipe.data.batch_size
    steps = math.ceil(run.epochs * samples / batch) if run.epochs else run.steps
    if run.epochs:
        logger.info(
            "%s: %g epochs of %s samples in batches of %s are %s steps, which replace run.steps %s",
            *(recipe.name, run.epochs, f"{samples:,}", f"{batch:,}", f"{steps:,}", f"{run.steps:,}"),
        )
    eval_every = max(1, round(run.eval_epochs * samples / batch)) if run.eval_epochs else run.eval_every
    return replace(recipe, run=replace(run, steps=steps, eval_every=eval_every))


def _has_same_epochs(stored: Recipe, recipe: Recipe) -> bool:
    """Return whether the steps of a stored run are those that ``recipe`` would compute from the same data."""

    def essence(each: Recipe) -> Sequence[object]:
        run, data = each.run, each.data
        return run.epochs, run.epochs or run.steps, run.eval_epochs, data.batch_size, data.sample_by, len(data.train)

    return essence(stored) == essence(recipe)
