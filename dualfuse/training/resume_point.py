"""Where a run resumes: from which checkpoint, with which number of steps, and in which folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dualfuse import hub
from dualfuse.errors import DualfuseError
from dualfuse.files import read_json
from dualfuse.io import listing
from dualfuse.provenance import FILE as PROVENANCE
from dualfuse.recipe import Recipe
from dualfuse.run_folder import CHECKPOINTS, DATA, FINAL, RECIPE, TOKENIZER, checkpoints, step_of
from dualfuse.training.freeze import FROZEN
from dualfuse.training.init_from import REPORT
from dualfuse.training.optim import learning_rate
from dualfuse.training.run_log import LOG, SKIPPED

logger = logging.getLogger(__name__)

WRITTEN = (LOG, SKIPPED, DATA, PROVENANCE, FROZEN, TOKENIZER, FINAL, CHECKPOINTS)
"""What a run writes after its recipe."""


def resume_point(recipe: Recipe, out: Path) -> Path | None:
    """Return the newest checkpoint of at most ``run.steps`` steps; None if there is no checkpoint at all.

    Raises ``DualfuseError`` if all checkpoints have more steps.
    """
    saved, steps = checkpoints(out / CHECKPOINTS), recipe.run.steps
    usable = [path for path in saved if step_of(path) <= steps]
    if saved and not usable:
        first = step_of(saved[0])
        raise DualfuseError(
            f"run.steps is {steps:,}, but the oldest checkpoint of {out} is that of step {first:,}; give --run.steps "
            f"{first} to finish the run there, or another --out to start anew"
        )
    return usable[-1] if usable else None


def is_past(recipe: Recipe, out: Path) -> bool:
    """Return whether the run has a checkpoint of more steps than the recipe, so that it ends without training."""
    return any(step_of(path) > recipe.run.steps for path in checkpoints(out / CHECKPOINTS))


def report_steps(recipe: Recipe, out: Path, step: int) -> None:
    """Log what another ``run.steps`` than that of the run so far changes; ``step`` is where it resumes."""
    steps = recipe.run.steps
    if is_past(recipe, out):
        newest = step_of(checkpoints(out / CHECKPOINTS)[-1])
        logger.info(
            "run.steps is %s, and the run stands at step %s: %s becomes the model of checkpoint step %s, the newest of "
            "at most that many steps, without training or evaluation; later checkpoints and the log are kept",
            *(f"{steps:,}", f"{newest:,}", out / FINAL, f"{step:,}"),
        )
        return
    before = hub.recipe_from_file(out / RECIPE).run.steps if step and (out / RECIPE).is_file() else steps
    if before != steps and step < steps:
        logger.info(
            "run.steps was %s and is %s: the learning rate follows the schedule of %s steps from here on, %.3g in step "
            "%s%s",
            *(f"{before:,}", f"{steps:,}", f"{steps:,}", learning_rate(recipe.optim, step, steps), f"{step + 1:,}"),
            f" instead of {learning_rate(recipe.optim, step, before):.3g}" if step < before else "",
        )


def check_stages(recipes: Sequence[Recipe], folders: Mapping[str, Path], unfinished: Sequence[Recipe]) -> None:
    """Raise ``DualfuseError`` if a stage would be trained further after a later one started from its final model."""
    for number, recipe in enumerate(recipes):
        final = folders[recipe.name] / FINAL
        if recipe not in unfinished or not (final / hub.CONFIG).is_file():
            continue
        for later in recipes[number + 1 :]:
            tokenizer = (later.task.visual_tokenizer or ("",))[0]
            begun = (folders[later.name] / RECIPE).is_file()
            if begun and (later.start_from == recipe.name or tokenizer == str(final.absolute())):
                raise DualfuseError(
                    f"{recipe.name} was finished before {later.name} started from it; with more steps its model would "
                    f"be another than the one that {later.name} started from. Give another --out"
                )


def check_folder(out: Path) -> None:
    """Raise ``DualfuseError`` for a folder with files that no run wrote and that this one would replace."""
    if (out / FINAL / hub.CONFIG).is_file():
        return
    if (out / RECIPE).exists():
        hub.recipe_from_file(out / RECIPE)  # which refuses the file of another program
        return
    others = [name for name in WRITTEN if (out / name).exists()]
    others += [REPORT] if (out / REPORT).exists() and not _is_start(out / REPORT) else []
    if others:
        raise DualfuseError(
            f"{out} holds {listing(others)}, but no {RECIPE}: no run wrote them, and they would be replaced. Move them "
            "away, or give another --out"
        )


def _is_start(path: Path) -> bool:
    """Return whether a file is the report on initial weights, which a run writes before its recipe."""
    with suppress(OSError, ValueError):
        content = read_json(path)
        return isinstance(content, dict) and {"source", "new", "unused"} <= set(content)
    return False
