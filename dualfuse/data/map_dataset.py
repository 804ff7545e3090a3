"""Samples that lie in several files, any of them by number."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

import numpy as np

from dualfuse.data.sample import Sample


class MapDataset(Sequence[Sample]):
    """The samples of one file after those of another."""

    def __init__(self, lengths: Sequence[int]) -> None:
        """Take the number of samples in every file."""
        self._starts = np.cumsum([0, *lengths])

    @abstractmethod
    def key(self, index: int) -> str:
        """Return the key of sample ``index``, which no other one has, without reading it."""

    @abstractmethod
    def digests(self) -> dict[str, str]:
        """Return what stands for the contents of each file, by the name that it has in keys."""

    @abstractmethod
    def read(self, file: int, number: int, key: str) -> Sample:
        """Read sample ``number`` of a file; raises ``BrokenSample`` for one that cannot be used."""

    def __len__(self) -> int:
        """The number of samples, broken ones included."""
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        """Read one sample, or several; raises ``BrokenSample`` for one that cannot be used."""
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        return self.read(*self.locate(index), self.key(index))

    def locate(self, index: int) -> tuple[int, int]:
        """Return the number of the file, and of the sample inside it."""
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"sample {index} of a set of {len(self)}")
        file = int(np.searchsorted(self._starts, number, side="right")) - 1
        return file, number - int(self._starts[file])
