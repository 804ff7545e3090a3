"""The folder that an export writes: refused if it holds files of the user."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from dualfuse import hub
from dualfuse.card import write_card
from dualfuse.checksums import unwritten_files
from dualfuse.config import JSON
from dualfuse.errors import DualfuseError
from dualfuse.io import listing
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Task

EXPORT, AVERAGE = "export.json", "average.json"
"""File of a model folder that says which checkpoint it is made of, or of which ones it is the average."""


def check_output(folder: Path, *sources: Path, force: bool) -> None:
    """Raise ``DualfuseError`` if ``folder`` holds files that no export wrote and ``force`` is not set.

    A folder that is or contains one of the ``sources`` is always refused.
    """
    for source in sources:
        if folder.resolve() in (source.resolve(), *source.resolve().parents):
            raise DualfuseError(f"{folder} would replace {source} itself; give another folder")
    if folder.exists() and not folder.is_dir():
        raise DualfuseError(f"{folder} is a file; give a folder")
    if force or not folder.is_dir() or not any(folder.iterdir()):
        return
    advice = "give another folder, or --force to replace files of the same names in it"
    if not any((folder / name).is_file() for name in (EXPORT, AVERAGE)):
        raise DualfuseError(f"{folder} holds {_content(folder)}, which no earlier export wrote; {advice}")
    if others := unwritten_files(folder):
        raise DualfuseError(f"{folder} is of an earlier export, but {listing(others)} changed since; {advice}")


def write_model_folder(
    folder: Path, task: Task, recipe: Recipe, notes: Mapping[str, JSON], *, force: bool = False
) -> Path:
    """Write a model folder, and return its path; :func:`check_output` must have been called.

    With ``force`` files of the same names are replaced one by one, and other files of an existing folder stay.
    """
    if not (force and folder.is_dir()):
        folder.parent.mkdir(parents=True, exist_ok=True)
        return hub.save(folder, task, recipe, notes=notes, write_more=write_card)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True) as beside:
        for file in hub.save(Path(beside) / "model", task, recipe, notes=notes, write_more=write_card).iterdir():
            os.replace(file, folder / file.name)
    return folder


def _content(folder: Path) -> str:
    return listing(sorted(path.name for path in folder.iterdir()), 5)
