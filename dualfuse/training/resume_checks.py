"""Checks before a run resumes: the same recipe, the same data, and batches divided the same way.

Without them the rest of a run would silently differ from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dualfuse import distributed as dist
from dualfuse import hub
from dualfuse.config import JSON, to_json
from dualfuse.data.map_dataset import MapDataset
from dualfuse.errors import DualfuseError
from dualfuse.io import MAX_TABLE, listing, read_json, write_json
from dualfuse.recipe import Recipe
from dualfuse.training import checkpoint

FINAL, BEST, CHECKPOINTS, RECIPE, DATA = "final", "best", "checkpoints", "recipe.json", "data.json"
PASS = "samples_in_a_pass"
"""The key in checkpoints of the number of samples per forward pass, over all processes."""

Files = Mapping[str, str]
"""Digests of the contents of files, by file name."""


def is_finished(recipe: Recipe, out: Path) -> bool:
    """Return whether ``out`` contains the final model.

    Raises ``DualfuseError`` if ``out`` contains the run of another recipe.
    """
    if (out / FINAL / hub.CONFIG).exists():
        _compare_recipes(hub.read_recipe(out / FINAL), recipe, out)
        return True
    if checkpoint.latest(out / CHECKPOINTS):
        _compare_recipes(hub.recipe_from_file(out / RECIPE), recipe, out)
    return False


def write_recipe(recipe: Recipe, out: Path) -> None:
    """Write the recipe beside the checkpoints, from the first process."""
    if dist.rank() == 0:
        write_json(out / RECIPE, hub.recipe_to_json(recipe))


def write_data(out: Path, sources: Sequence[str], sets: Sequence[MapDataset]) -> None:
    """Write digests of the training data beside the checkpoints, from the first process."""
    if dist.rank() == 0:
        content = [
            {"source": source, "samples": len(opened), "files": opened.digests()}
            for source, opened in zip(sources, sets, strict=True)
        ]
        write_json(out / DATA, content)


def check_data_is_unchanged(out: Path, sets: Sequence[MapDataset]) -> None:
    """Raise ``DualfuseError`` that names the files if the data is not that of the run in ``out``.

    Names and sizes of samples and the tokens of texts are compared, not the location and the age of files; an image
    replaced by one of the same size in bytes is not noticed.
    """
    if not (out / DATA).is_file():
        return  # a run of an earlier version
    try:
        stored: list[Files] = [each["files"] for each in read_json(out / DATA, MAX_TABLE)]
        changes = [line for before, now in zip(stored, sets, strict=True) for line in _changes(before, now.digests())]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DualfuseError(f"{out / DATA} is damaged ({error}); delete it if the data has not changed") from error
    if changes:
        raise DualfuseError(
            f"{out} contains a run that started with other data:\n  {listing(changes, separator=chr(10) + '  ')}\n"
            "Put the files back to resume it, or give another --out to start anew"
        )


def batch_division(recipe: Recipe) -> dict[str, JSON]:
    """Return the number of samples per forward pass, over all processes, for a checkpoint."""
    return {PASS: (recipe.run.micro_batch or recipe.data.batch_size // dist.world_size()) * dist.world_size()}


def check_batch_division(recipe: Recipe, extra: Mapping[str, JSON]) -> None:
    """Raise ``DualfuseError`` if ITC would compare other sets of samples than when ``extra`` was saved."""
    before, now = extra.get(PASS), batch_division(recipe)[PASS]
    if isinstance(before, int) and before != now:
        raise DualfuseError(
            f"the run had {before} samples per forward pass, over all processes; {dist.world_size()} processes with "
            f"run.micro_batch={recipe.run.micro_batch} have {now}, and ITC would compare other sets of samples. "
            f"Give --run.micro-batch {before // dist.world_size()}"
        )


def _compare_recipes(stored: Recipe, recipe: Recipe, out: Path) -> None:
    changes = [
        f"{name} was {before!r}, is {now!r}"
        for name, before, now in _differences(to_json(_essence(stored)), to_json(_essence(recipe)))
    ]
    if changes:
        raise DualfuseError(
            f"{out} contains a run of another recipe:\n  "
            + "\n  ".join(changes)
            + "\nGive the same settings to resume it, or another --out to start anew"
        )


def _essence(recipe: Recipe) -> Recipe:
    """Reset the fields that do not change the result; ``micro_batch`` is compared with the checkpoint."""
    kept = {"log_every": 0, "eval_every": 0, "eval_rerank": 0, "save_every": 0, "keep_last": 1, "best": ""}
    how = {"activation_checkpointing": False, "fsdp": False, "compile": False, "dist_timeout": 30.0, "micro_batch": 0}
    run = replace(recipe.run, **kept, **how, tensorboard=False, on_nonfinite="stop")
    return replace(recipe, run=run, data=replace(recipe.data, num_workers=0, validation=""))


def _differences(before: JSON, now: JSON, name: str = "") -> Iterator[tuple[str, JSON, JSON]]:
    """Yield the differing values by their dotted name: ("optim.lr", 0.1, 0.2)."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:  # in the order of the fields
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now:
        yield name, before, now


def _changes(before: Files, now: Files) -> list[str]:
    return [
        *(f"{name} is missing" for name in before if name not in now),
        *(f"{name} is new" for name in now if name not in before),
        *(f"{name} contains other samples" for name, digest in before.items() if now.get(name, digest) != digest),
    ]
