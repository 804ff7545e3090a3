"""Sets of samples in several files: which files a path means, how keys name them, and samples by index."""

from __future__ import annotations

import glob
import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.io import listing


def find_files(source: str | Path, endings: Sequence[str], what: str) -> tuple[Path, ...]:
    """Return the files that a path, a folder or a glob pattern means, sorted by path; at least one.

    A path to a file is taken whatever its ending; folders and patterns give the files with one of the ``endings``
    (".tar"). Raises DualfuseError, which says that no ``what`` was found, if there is none.
    """
    path = Path(source).expanduser().absolute()  # so that changing the working directory does not matter
    if path.is_file():
        return (path,)
    matches = path.iterdir() if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    files = tuple(sorted(match for match in matches if match.suffix in endings and match.is_file()))
    if files:
        return files
    pattern = path / f"*{'|'.join(endings)}" if path.is_dir() else path
    folder = next(parent for parent in pattern.parents if parent.is_dir())
    names = listing(sorted(entry.name for entry in folder.iterdir()), 5)
    raise DualfuseError(f"no {what} matches {pattern}; {folder} holds {names}")


def labels(paths: Sequence[Path], endings: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of files in keys: without ``endings``, and without folders unless two files share a name."""
    short = [path.stem if path.suffix in endings else path.name for path in paths]
    if len(set(short)) == len(paths):
        return tuple(short)
    root = os.path.commonpath([path.parent for path in paths])
    relative = (path.relative_to(root) for path in paths)
    return tuple((path.with_suffix("") if path.suffix in endings else path).as_posix() for path in relative)


class MapDataset(Sequence[Sample]):
    """The samples of several files, one file after the other."""

    def __init__(self, lengths: Sequence[int]) -> None:
        """``lengths`` are the numbers of samples in the files."""
        self._starts = np.cumsum([0, *lengths])

    @abstractmethod
    def key(self, index: int) -> str:
        """Return the unique key of sample ``index`` without reading it."""

    @abstractmethod
    def digests(self) -> dict[str, str]:
        """Return a digest of the contents of each file, by the file's name in keys."""

    @abstractmethod
    def read(self, file: int, number: int, key: str) -> Sample:
        """Read sample ``number`` of a file; raises ``BrokenSample`` if it is unusable."""

    def __len__(self) -> int:
        """Return the number of samples, broken ones included."""
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        """Read one sample, or several; raises ``BrokenSample`` if one is unusable."""
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        return self.read(*self.locate(index), self.key(index))

    def locate(self, index: int) -> tuple[int, int]:
        """Return the number of the file, and that of the sample inside it."""
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"sample {index} of a set of {len(self)}")
        file = int(np.searchsorted(self._starts, number, side="right")) - 1
        return file, number - int(self._starts[file])
