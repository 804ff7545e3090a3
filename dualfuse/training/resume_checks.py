"""Checks before a run resumes: the same recipe, the same data, and batches divided the same way.

Without them the rest of a run would silently differ from its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualfuse import distributed as dist
from dualfuse import hub
from dualfuse.checksums import sha256
from dualfuse.config import JSON, differences, to_json
from dualfuse.data.text.tokenizer import load_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.files import MAX_TABLE, read_json
from dualfuse.io import listing, write_json, write_text
from dualfuse.recipe import Recipe
from dualfuse.run_folder import CHECKPOINTS, DATA, FINAL, RECIPE, TOKENIZER
from dualfuse.training import checkpoint
from dualfuse.training.dataloader import open_sets

PASS = "samples_in_a_pass"
"""The key in checkpoints of the number of samples per forward pass, over all processes."""

Files = Mapping[str, str]
"""Digests of the contents of files, by file name."""


def is_finished(recipe: Recipe, out: Path) -> bool:
    """Return whether ``out`` contains the final model, after as many steps as the recipe has.

    Raises ``DualfuseError`` if ``out`` contains the run of another recipe, or one that was finished with more steps. If
    data or a tokenizer have another path, their contents decide.
    """
    finished, newest = (out / FINAL / hub.CONFIG).exists(), checkpoint.latest(out / CHECKPOINTS)
    if stored := stored_recipe(out):
        moved = replace(recipe.data, train=stored.data.train, tokenizer=stored.data.tokenizer)
        can_compare = _has_contents(out) and len(stored.data.train) == len(recipe.data.train)
        _compare_recipes(stored, replace(recipe, data=moved) if can_compare else recipe, out)
        if finished and moved != recipe.data:
            check_data_is_unchanged(recipe, out)
        if finished:
            _check_steps(stored.run.steps, recipe.run.steps, newest, out)
            return stored.run.steps == recipe.run.steps
    return False


def _check_steps(finished: int, steps: int, newest: Path | None, out: Path) -> None:
    """Raise ``DualfuseError`` if a run that was finished cannot end after another number of ``steps``."""
    if steps < finished:
        raise DualfuseError(
            f"{out} was finished with run.steps {finished:,}, and its model is not replaced by one of {steps:,}; "
            f"dualfuse export {out} --step N makes a model of an earlier checkpoint, another --out starts anew"
        )
    if steps > finished and newest is None:
        raise DualfuseError(
            f"{out} was finished with run.steps {finished:,} and has no checkpoint to train {steps:,} steps from; give "
            f"--start-from {out / FINAL} and another --out"
        )


def stored_recipe(out: Path) -> Recipe | None:
    """Return the recipe of the run that ``out`` contains; None if there is none."""
    if (out / FINAL / hub.CONFIG).exists():
        return hub.read_recipe(out / FINAL)
    return hub.recipe_from_file(out / RECIPE) if checkpoint.latest(out / CHECKPOINTS) else None


def write_recipe(recipe: Recipe, out: Path) -> None:
    """Write the recipe and its tokenizer beside the checkpoints, which lack them, from the first process."""
    if dist.rank() == 0:
        write_json(out / RECIPE, hub.recipe_to_json(recipe))
        write_text(out / TOKENIZER, load_tokenizer(recipe.data.tokenizer).tokenizer.to_str(pretty=True))


def write_data(recipe: Recipe, out: Path) -> None:
    """Write digests of the training data and of the tokenizer beside the checkpoints, from the first process."""
    if dist.rank() == 0:
        sets = zip(recipe.data.train, open_sets(recipe, recipe.data.train), strict=True)
        train = [{"source": source, "samples": len(data), "files": data.digests()} for source, data in sets]
        write_json(out / DATA, {"tokenizer": _tokenizer_digest(recipe), "train": train})


def check_data_is_unchanged(recipe: Recipe, out: Path) -> None:
    """Raise ``DualfuseError`` on the first process, with the names of files, if the data is not that of the run.

    The contents of the samples and of the tokenizer are compared, not the location and the age of files.
    """
    if dist.rank() != 0 or not (out / DATA).is_file():  # a run of an earlier version
        return
    current = [(data.digests(), len(data)) for data in open_sets(recipe, recipe.data.train)]
    digest = _tokenizer_digest(recipe)
    try:
        tokenizer, train = _read_data(out)
        changes = ["the tokenizer has another content"] if tokenizer not in ("", digest) else []
        for before, (files, samples) in zip(train, current, strict=True):
            changes += _changes(before["files"], files, before["samples"] == samples)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise DualfuseError(f"{out / DATA} is damaged ({error}); delete it if the data has not changed") from error
    if changes:
        raise DualfuseError(
            f"{out} contains a run that started with other data:\n  {listing(changes, separator=chr(10) + '  ')}\n"
            "Put the files back to resume it, or give another --out to start anew"
        )


def _read_data(out: Path) -> tuple[str, list[dict[str, Any]]]:
    """Return the digest of the tokenizer, "" in a file of an earlier version, and the entries of the data sets."""
    content = read_json(out / DATA, MAX_TABLE)
    return ("", content) if isinstance(content, list) else (content["tokenizer"], content["train"])


def _has_contents(out: Path) -> bool:
    """Return whether a run recorded the contents of its data; earlier versions recorded names and sizes."""
    try:
        return bool(_read_data(out)[0])
    except (OSError, LookupError, TypeError, ValueError):  # reported by check_data_is_unchanged
        return False


def _tokenizer_digest(recipe: Recipe) -> str:
    return sha256(Path(recipe.data.tokenizer)) if recipe.data.tokenizer else "BERT"


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
        for name, before, now in differences(to_json(_essence(stored)), to_json(_essence(recipe)))
    ]
    if changes:
        raise DualfuseError(
            f"{out} contains a run of another recipe:\n  "
            + "\n  ".join(changes)
            + "\nGive the same settings to resume it, or another --out to start anew"
        )


def _essence(recipe: Recipe) -> Recipe:
    """Reset the fields that do not change the steps so far; ``micro_batch`` is compared with the checkpoint."""
    kept = {
        "steps": 1,
        "log_every": 0,
        "eval_every": 0,
        "epochs": 0.0,
        "eval_epochs": 0.0,
        "eval_rerank": 0,
        "save_every": 0,
        "keep_last": 1,
        "best": "",
    }
    how = {"activation_checkpointing": False, "fsdp": False, "compile": False, "dist_timeout": 30.0, "micro_batch": 0}
    run = replace(recipe.run, **kept, **how, tensorboard=False, trackers=(), on_nonfinite="stop")
    return replace(recipe, run=run, data=replace(recipe.data, num_workers=0, validation=""))


def _changes(before: Files, now: Files, as_many: bool) -> list[str]:
    """Return the differences between the files of a data set; digests of earlier versions have another length."""
    others = [name for name, digest in before.items() if len(now.get(name, "")) == len(digest) and now[name] != digest]
    names = [
        *(f"{name} is missing" for name in before if name not in now),
        *(f"{name} is new" for name in now if name not in before),
        *(f"{name} contains other samples" for name in others),
    ]
    return names if names or as_many else ["the number of samples is another"]
