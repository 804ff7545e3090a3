"""The folder of a run: the names in it, its checkpoints, and the model that stands for the whole run."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from dualfuse import distributed as dist
from dualfuse.checksums import differing_files
from dualfuse.errors import DualfuseError
from dualfuse.files import read_json, read_json_object
from dualfuse.io import listing
from dualfuse.tensor_files import describe_file, load_tensors

logger = logging.getLogger(__name__)

FINAL, BEST, LAST = "final", "best", "last"
"""Model folders of a run: after the last step, with the best validation metric, and after the step of a stop."""
CHECKPOINTS, RECIPE, DATA, TOKENIZER = "checkpoints", "recipe.json", "data.json", "tokenizer.json"
STEP = "step.json"
"""File of a model folder with the number of steps that trained it: {"step": 700}."""
MODEL, STATE, SHARDS, OF_OPTIMIZER = "model.safetensors", "state.json", "shards", "optimizer."
"""Weights and state of a checkpoint, the folder of the shards, and the prefix of the optimizer's tensors there."""


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in ``folder``, oldest first."""
    return sorted((path for path in folder.glob("step-*") if step_of(path) >= 0), key=step_of)


def step_of(path: Path) -> int:
    """Return the step of a checkpoint by its name; -1 for any other path."""
    match = re.fullmatch(r"step-(\d+)", path.name)
    return int(match[1]) if match else -1


def is_checkpoint(path: Path) -> bool:
    """Return whether ``path`` is a checkpoint in the folder of a run."""
    return step_of(path) >= 0 and (path / STATE).is_file() and (run_of(path) / RECIPE).is_file()


def is_run(path: Path) -> bool:
    """Return whether ``path`` is the folder of a run."""
    return (path / RECIPE).is_file() and not (path / "config.json").is_file()


def run_of(checkpoint: Path) -> Path:
    """Return the folder of the run of a checkpoint."""
    return checkpoint.absolute().parent.parent


def trained_steps(folder: Path) -> int | None:
    """Return the number of steps that trained a model folder or a checkpoint; None in a folder without a record."""
    if is_checkpoint(folder):
        return step_of(folder)
    if not (folder / STEP).is_file():
        return None
    step = read_json_object(folder / STEP).get("step")
    return step if isinstance(step, int) else None


def model_of(path: Path) -> Path:
    """Return the model that stands for a run: its best, else its final, else its last, else its newest checkpoint.

    Any other path is returned unchanged. Raises ``DualfuseError`` if the run has no model, or if it was stopped after
    it had been finished with fewer steps, so that two models could be meant.
    """
    if not is_run(path):
        return path
    named = [path / name for name in (BEST, FINAL, LAST) if (path / name / "config.json").is_file()]
    found = [*named, *reversed(checkpoints(path / CHECKPOINTS))]
    if not found:
        raise DualfuseError(
            f"{path} is a run without a model: it has neither a checkpoint nor {FINAL}, {BEST} or {LAST}"
        )
    if found[0].name == FINAL and len(named) > 1:
        finished, stopped = (trained_steps(each) or 0 for each in named)
        if stopped > finished:
            raise DualfuseError(
                f"{path} holds {named[0]}, after {finished:,} steps, and {named[1]}, after {stopped:,}; give one"
            )
    step = trained_steps(found[0])
    logger.info("%s: its model is %s%s", path, found[0], "" if step is None else f", after {step:,} steps")
    return found[0]


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint by name, whole, whether one or many processes wrote it.

    In a process group all processes must call this. Raises ``DualfuseError`` if a file is missing, damaged, or not the
    one that was saved.
    """
    sharded = (checkpoint / SHARDS).is_dir()
    sizes = _sizes(checkpoint)
    names = [name for name in sizes if name.startswith(f"{SHARDS}/")] if sharded else [MODEL]
    for name in names:
        file, size = checkpoint / name, sizes.get(name)
        if not file.is_file() or file.stat().st_size != size:
            raise DualfuseError(f"{file} is {describe_file(file)}, not {size} bytes as saved; give another checkpoint")
    if changed := differing_files(checkpoint, names):
        raise DualfuseError(
            f"{listing(changed)} has another content than was saved: bits have flipped; give another checkpoint"
        )
    if sharded:
        return dist.read_shards(
            checkpoint / SHARDS, lambda name, shape: None, wanted=lambda name: not name.startswith(OF_OPTIMIZER)
        )
    try:
        return load_tensors(checkpoint / MODEL)
    except (SafetensorError, ValueError, OSError) as error:
        raise DualfuseError(f"{checkpoint / MODEL} is truncated or not a safetensors file: {error}") from error


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Return the sizes of the files of a checkpoint, by name."""
    try:
        return dict(read_json(checkpoint / STATE)["sizes"])
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise DualfuseError(f"{checkpoint / STATE} is missing or not the state of a checkpoint") from error
