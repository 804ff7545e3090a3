"""A folder holds the run of one recipe: going on with another would mix two runs without a word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dualfuse import distributed as dist
from dualfuse import hub
from dualfuse.config import JSON, to_json
from dualfuse.errors import DualfuseError
from dualfuse.io import write_json
from dualfuse.recipe import Recipe
from dualfuse.training import checkpoint

FINAL, BEST, CHECKPOINTS, RECIPE = "final", "best", "checkpoints", "recipe.json"


def is_finished(recipe: Recipe, out: Path) -> bool:
    """Return whether ``out`` holds the final model; ``DualfuseError`` if what it holds is another recipe's."""
    if (out / FINAL / hub.CONFIG).exists():
        _compare(hub.read_recipe(out / FINAL), recipe, out)
        return True
    if checkpoint.latest(out / CHECKPOINTS):
        _compare(hub.recipe_from_file(out / RECIPE), recipe, out)
    return False


def write_recipe(recipe: Recipe, out: Path) -> None:
    """Keep the recipe beside the checkpoints, from the first process; a reader sees a whole file or none."""
    if dist.rank() == 0:
        write_json(out / RECIPE, hub.recipe_to_json(recipe))


def _compare(stored: Recipe, recipe: Recipe, out: Path) -> None:
    differing = [
        f"{name} was {before!r}, is {now!r}"
        for name, before, now in _differences(to_json(_essence(stored)), to_json(_essence(recipe)))
    ]
    if differing:
        raise DualfuseError(
            f"{out} holds a run of another recipe:\n  "
            + "\n  ".join(differing)
            + "\nGive the same settings to go on with it, or another --out to start anew"
        )


def _essence(recipe: Recipe) -> Recipe:
    """Reset the fields that do not change the result; ``micro_batch`` is compared with the checkpoint."""
    kept = {"log_every": 0, "eval_every": 0, "eval_rerank": 0, "save_every": 0, "keep_last": 1, "best": ""}
    how = {"activation_checkpointing": False, "fsdp": False, "compile": False, "dist_timeout": 30.0, "micro_batch": 0}
    run = replace(recipe.run, **kept, **how, tensorboard=False, on_nonfinite="stop")
    return replace(recipe, run=run, data=replace(recipe.data, num_workers=0, validation=""))


def _differences(before: JSON, now: JSON, name: str = "") -> Iterator[tuple[str, JSON, JSON]]:
    """Return what differs, by its dotted name: ("optim.lr", 0.1, 0.2)."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:  # in the order of the fields
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now:
        yield name, before, now
