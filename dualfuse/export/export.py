"""A model folder of any checkpoint of a run."""

from __future__ import annotations

from pathlib import Path

from dualfuse import hub
from dualfuse.config import JSON
from dualfuse.errors import DualfuseError
from dualfuse.export.output import EXPORT, check_output, write_model_folder
from dualfuse.files import read_json
from dualfuse.provenance import FILE as PROVENANCE
from dualfuse.run_folder import CHECKPOINTS, RECIPE, STEP, checkpoints, is_checkpoint, is_run, run_of, step_of

EXPORTED = "exported"
"""Folder in a run for the models that are exported without a path."""


def export(source: Path, out: Path | None = None, *, step: int | None = None, force: bool = False) -> Path:
    """Write a model folder of a checkpoint, and return its path.

    ``source`` is the folder of a run, whose checkpoint of ``step`` is taken (None: the newest), or one checkpoint.
    ``out`` is by default RUN/exported/step-00000700. Raises ``DualfuseError`` if there is no such checkpoint, and if
    ``out`` holds files that no export wrote, unless ``force``: then files of the same names are replaced.
    """
    checkpoint = find_checkpoint(source, step)
    out = out or run_of(checkpoint) / EXPORTED / checkpoint.name
    check_output(out, checkpoint, force=force)
    loaded = hub.load(checkpoint)
    recipe = hub.with_tokenizer(loaded.recipe, checkpoint)
    return write_model_folder(out, loaded.task, recipe, notes(checkpoint), force=force)


def find_checkpoint(source: Path, step: int | None = None) -> Path:
    """Return a checkpoint of the run ``source``: that of ``step``, or the newest; or ``source``, if it is one itself.

    Raises ``DualfuseError`` that lists the steps of the run if there is no such checkpoint.
    """
    if is_checkpoint(source):
        if step not in (None, step_of(source)):
            raise DualfuseError(f"{source} is the checkpoint of step {step_of(source)}; leave out --step {step}")
        return source
    if not is_run(source):
        raise DualfuseError(f"{source} is neither the folder of a run (it has no {RECIPE}) nor one of its checkpoints")
    saved = {step_of(path): path for path in checkpoints(source / CHECKPOINTS)}
    if not saved or (step is not None and step not in saved):
        wanted = "" if step is None else f" of step {step}"
        raise DualfuseError(
            f"{source} has no checkpoint{wanted}; its steps are {', '.join(map(str, saved)) or 'none'} "
            "(run.keep_last sets how many are kept)"
        )
    return saved[max(saved) if step is None else step]


def notes(checkpoint: Path) -> dict[str, JSON]:
    """Return the notes of a model folder of ``checkpoint``: its step, its origin, and how it was trained."""
    log = run_of(checkpoint) / PROVENANCE
    trained: JSON = read_json(log) if log.is_file() else []
    return {
        STEP: {"step": step_of(checkpoint)},
        EXPORT: {"checkpoint": "/".join(checkpoint.absolute().parts[-3:])},
        PROVENANCE: {"training": trained},
    }
