"""Sets of samples in several files: which files a path means, how keys name them, and samples by index."""

from __future__ import annotations

import glob
import os
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np

from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.io import listing

MAX_BRACES = 1_000_000
"""Number of names that braces may stand for."""
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


def find_files(source: str | Path, endings: Sequence[str], what: str) -> tuple[Path, ...]:
    """Return the files that a path, a folder or a pattern means, sorted by path; at least one.

    A path that exists is taken literally, also the beginning of a pattern. Patterns have the wildcards of the shell and
    braces as in WebDataset: ``train-{000..099}.tar``, ``{a,b}.tar``. A file may have any ending; folders and patterns
    give the files with one of the ``endings`` (".tar"), in any case. Raises DualfuseError, which says that no ``what``
    was found, if there is none, and if a file that braces name is missing.
    """
    path = Path(source).expanduser().absolute()  # so that changing the working directory does not matter
    if path.is_file():
        return (path,)
    matches = path.iterdir() if path.is_dir() else _matches(path)
    files = tuple(sorted({match for match in matches if has_ending(match, endings) and match.is_file()}))
    if files:
        return files
    pattern = path / f"*{'|'.join(endings)}" if path.is_dir() else path
    folder = _existing(pattern)
    names = listing(sorted(entry.name for entry in folder.iterdir()), 5)
    raise DualfuseError(f"no {what} matches {pattern}; {folder} holds {names}")


def has_ending(path: Path, endings: Sequence[str]) -> bool:
    """Return whether the suffix of a path is one of ``endings``, in any case."""
    return path.suffix.lower() in endings


def _existing(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.is_dir())


def _matches(pattern: Path) -> Iterator[Path]:
    folder = _existing(pattern)
    names = list(islice(_expand(str(pattern.relative_to(folder))), MAX_BRACES + 1))
    if len(names) > MAX_BRACES:
        raise DualfuseError(f"{pattern} stands for more than {MAX_BRACES:,} names")
    missing = [name for name in names if not glob.has_magic(name) and not (folder / name).exists()]
    if missing and len(missing) < len(names):
        raise DualfuseError(f"{pattern} stands for {len(names):,} files, of which {listing(missing, 5)} are missing")
    for name in names:
        yield from map(Path, glob.glob(f"{glob.escape(str(folder))}{os.sep}{name}", recursive=True))


def _expand(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern with braces stands for."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    first, last, options = match.groups()
    if options is None:
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        numbers = range(int(first), int(last) + 1) if int(first) <= int(last) else range(int(first), int(last) - 1, -1)
        names = (f"{number:0{width}}" for number in numbers)
    else:
        names = iter(options.split(","))
    for name in names:
        yield from _expand(pattern[: match.start()] + name + pattern[match.end() :])


def labels(paths: Sequence[Path], endings: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of files in keys: without ``endings``, and without folders unless two files share a name."""
    plain = [path.with_suffix("") if has_ending(path, endings) else path for path in paths]
    short = [path.name for path in plain]
    if len(set(short)) == len(paths):
        return tuple(short)
    root = os.path.commonpath([path.parent for path in paths])
    return tuple(path.relative_to(root).as_posix() for path in plain)


class MapDataset(Sequence[Sample]):
    """The samples of several files, one file after the other."""

    def __init__(self, lengths: Sequence[int] | np.ndarray) -> None:
        """``lengths`` are the numbers of samples in the files."""
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    @abstractmethod
    def key(self, index: int) -> str:
        """Return the unique key of sample ``index`` without reading it."""

    @abstractmethod
    def digests(self) -> dict[str, str]:
        """Return a digest of the contents of each file, by the file's name in keys."""

    @abstractmethod
    def read(self, file: int, number: int, key: str) -> Sample:
        """Read sample ``number`` of a file; raises ``BrokenSample`` if it is unusable."""

    def caption_counts(self) -> np.ndarray:
        """Return the number of captions (len(self),) of each sample; an unreadable sample counts as one.

        Raises DualfuseError for a set without captions.
        """
        raise DualfuseError(
            f"data.sample_by is 'caption', but a {type(self).__name__} set has no captions; set it to 'image', or give "
            "shards of images with captions"
        )

    def following(self, index: int) -> int:
        """Return the index of the sample that replaces sample ``index`` if that is broken: the next one, cyclically."""
        return (index + 1) % len(self)

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
