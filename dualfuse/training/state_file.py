"""Records of half precision in one growing file, by key: what frozen towers return, computed once."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.files import read_json_object
from dualfuse.io import describe_space, is_disk_full, write_json

ENTRY = np.dtype([("key", "V16"), ("start", "<u8"), ("length", "<u4"), ("checksum", "<u4")])
"""Of the index: key, first value and number of values in the file, and CRC-32 of a record."""
VALUES, INDEX, SHAPE = "states.bin", "index.bin", "shape.json"


class StateFile:
    """The records of a folder. One process at a time may append; any number may read what is complete.

    An entry of the index is written after its record is on the disk, so that a build that was interrupted at any time
    resumes after the last complete record. A record is compared with its checksum when it is first read.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder, which may be empty or missing."""
        self.folder = folder
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have appended."""
        path = self.folder / INDEX
        content = path.read_bytes() if path.is_file() else b""
        self._entries = np.frombuffer(content[: len(content) // ENTRY.itemsize * ENTRY.itemsize], ENTRY)
        self._rows = {key.tobytes(): row for row, key in enumerate(self._entries["key"])}
        self._checked = np.zeros(len(self._entries), dtype=bool)
        self._values: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        """Return whether there is a record."""
        return key in self._rows

    @property
    def shape(self) -> Mapping[str, object]:
        """What was passed to :meth:`describe`; empty if nothing was."""
        path = self.folder / SHAPE
        return read_json_object(path) if path.is_file() else {}

    def describe(self, shape: Mapping[str, object]) -> None:
        """Store the shape of the records, as JSON values."""
        write_json(self.folder / SHAPE, shape)

    def append(self, records: Mapping[bytes, Tensor]) -> None:
        """Append records, tensors of half precision on the CPU. Only the holder of the folder's lock may call this.

        Raises ``DualfuseError`` if the disk is full; what was appended before is kept.
        """
        end = int(self._entries["start"][-1] + self._entries["length"][-1]) if len(self) else 0
        contents = [record.contiguous().numpy().tobytes() for record in records.values()]
        lengths = np.array([len(content) // 2 for content in contents])
        entries = np.zeros(len(contents), ENTRY)
        entries["key"] = [np.void(key) for key in records]
        entries["start"], entries["length"] = end + np.cumsum(lengths) - lengths, lengths
        entries["checksum"] = [zlib.crc32(content) for content in contents]
        try:
            _write_at(self.folder / VALUES, 2 * end, contents)
            _write_at(self.folder / INDEX, len(self) * ENTRY.itemsize, [entries.tobytes()])
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise DualfuseError(
                f"the disk of {self.folder} is full; free some space and rerun the command, which resumes, or set "
                "--towers.cache-gb 0 to store no states of towers"
            ) from error
        self._rows.update({key: len(self) + number for number, key in enumerate(records)})
        self._entries = np.concatenate([self._entries, entries])
        self._checked = np.concatenate([self._checked, np.ones(len(entries), dtype=bool)])
        self._values = None

    def read(self, key: bytes) -> np.ndarray:
        """Return a record, a read-only view of the file; raises ``DualfuseError`` if it is damaged."""
        row = self._rows[key]
        entry = self._entries[row]
        if self._values is None:
            self._values = np.memmap(self.folder / VALUES, dtype=np.float16, mode="r")
        record = self._values[int(entry["start"]) : int(entry["start"]) + int(entry["length"])]
        if not self._checked[row]:
            if len(record) != entry["length"] or zlib.crc32(record.tobytes()) != entry["checksum"]:
                raise DualfuseError(
                    f"{self.folder / VALUES} is damaged, by its checksum; delete the folder {self.folder}, and the "
                    "states of the towers are computed again"
                )
            self._checked[row] = True
        return record

    def stack(self, keys: Sequence[bytes]) -> Tensor:
        """Return records of one length as (B, length), in half precision."""
        return torch.from_numpy(np.stack([self.read(key) for key in keys]))


def check_space(folder: Path, needed: int) -> None:
    """Raise ``DualfuseError`` if fewer than ``needed`` bytes are free where ``folder`` will be."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    status = os.statvfs(existing) if hasattr(os, "statvfs") else None
    if status is not None and status.f_bavail * status.f_frsize < needed:
        raise DualfuseError(
            f"the states of the towers do not fit on the disk of {existing}: {describe_space(existing, needed)}; set "
            "XDG_CACHE_HOME to a folder on a larger disk, or --towers.cache-gb 0 to store none"
        )


def _write_at(path: Path, offset: int, parts: Sequence[bytes]) -> None:
    """Write ``parts`` at ``offset`` to the disk, in place of whatever an interrupted process left after it."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(offset)
        file.seek(offset)
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
