"""Finds the files that a path, a folder or a pattern means, and names them in keys."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.io import listing


def find_files(source: str | Path, endings: Sequence[str], what: str) -> tuple[Path, ...]:
    """List the files that ``source`` means, sorted by path; at least one.

    A file is taken whatever it is called; of a folder, and of what a pattern matches, come the files with one of the
    ``endings`` (".tar"). Raises DualfuseError, which says ``what`` was looked for, when there is none.
    """
    path = Path(source).expanduser().absolute()  # a later change of folder must not matter
    if path.is_file():
        return (path,)
    matches = path.iterdir() if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    found = tuple(sorted(match for match in matches if match.suffix in endings and match.is_file()))
    if found:
        return found
    pattern = path / f"*{'|'.join(endings)}" if path.is_dir() else path
    folder = next(parent for parent in pattern.parents if parent.is_dir())
    names = sorted(entry.name for entry in folder.iterdir())
    raise DualfuseError(f"no {what} matches {pattern}; {folder} holds {listing(names, 5)}")


def labels(paths: Sequence[Path], endings: Sequence[str] = ()) -> tuple[str, ...]:
    """Name files in keys, without ``endings``: without folders, unless only these tell two of them apart."""
    short = [path.stem if path.suffix in endings else path.name for path in paths]
    if len(set(short)) == len(paths):
        return tuple(short)
    root = os.path.commonpath([path.parent for path in paths])
    relative = (path.relative_to(root) for path in paths)
    return tuple((path.with_suffix("") if path.suffix in endings else path).as_posix() for path in relative)
