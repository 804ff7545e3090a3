"""Rows of numbers in a file that grows at its end and is mapped into memory; or in memory alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dualfuse.io import naming


class Rows:
    """An array (R, W) to which rows are appended; what is behind row R of its file was never committed."""

    def __init__(self, path: Path | None, width: int, dtype: np.dtype, count: int = 0) -> None:
        """``count`` is the number of rows that are valid; without ``path`` the rows are lost with the process."""
        self.path, self.width, self.dtype, self.count = path, width, np.dtype(dtype), count
        self._array = np.empty((0, width), self.dtype)
        self._is_dirty = False

    @property
    def values(self) -> np.ndarray:
        """The rows (R, W). They are mapped, not read; changes of the array do not reach the file."""
        if self.path is not None and self.count and len(self._array) < self.count:
            # copy on write: torch warns of arrays that cannot be written
            self._array = np.memmap(self.path, self.dtype, mode="c", shape=(self.count, self.width))
        return self._array[: self.count]

    @property
    def size(self) -> int:
        """Bytes of the valid rows."""
        return self.count * self.width * self.dtype.itemsize

    def append(self, rows: np.ndarray) -> None:
        """Write rows (B, W) behind the last one. Raises ``OSError``, and then has as many rows as before."""
        rows = np.ascontiguousarray(rows, self.dtype)
        if self.path is None:
            self._grow(len(rows))
            self._array[self.count : self.count + len(rows)] = rows
        else:
            with naming(self.path), self.path.open("r+b" if self.count or self.path.exists() else "x+b") as file:
                file.seek(self.size)
                file.write(rows.data)
                file.truncate()
            self._is_dirty = True
        self.count += len(rows)

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        if self.path is not None and self._is_dirty:
            with naming(self.path), self.path.open("rb") as file:
                os.fsync(file.fileno())
            self._is_dirty = False

    def stamp(self) -> str:
        """Return size and modification time of the file, which differ in a copy; empty without a file."""
        if self.path is None:
            return ""
        status = self.path.stat()
        return f"{status.st_size}-{status.st_mtime_ns}"

    def _grow(self, more: int) -> None:
        if self.count + more > len(self._array):
            grown = np.empty((max(self.count + more, 2 * len(self._array)), self.width), self.dtype)
            grown[: self.count] = self._array[: self.count]
            self._array = grown
