"""The rows of an exact store: its segments and the manifest that says which of their rows are valid."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import ItemsView, Iterator, Mapping, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.search.stores.codecs import codec
from dualfuse.search.stores.filters import Metadata
from dualfuse.search.stores.manifest import VISIBLE, Manifest, checksum, decode_name, encode_name
from dualfuse.search.stores.segment import CAPACITY, Segment

logger = logging.getLogger(__name__)
FORMAT = "1"
MANIFEST = "manifest.sqlite"
COMPACTED = 1024  # removed rows from which a segment that is mostly removed is written anew
GRACE = 100  # versions that a compaction leaves readable, for stores that were opened before
BATCH = 8192  # rows copied or checked at a time


class Segments:
    """All rows of a store, in a folder or in memory. Changes are durable after :meth:`commit`."""

    def __init__(self, folder: Path | None, precision: str, dimensions: int) -> None:
        """Open the manifest; :meth:`create` and :meth:`load` return what can be used."""
        self.folder, self._precision, self._dimensions = folder, precision, dimensions
        self.manifest = Manifest(folder / MANIFEST if folder else None)
        self.segments: dict[int, Segment] = {}
        self.width = int(self.manifest.get("width") or 0)

    @classmethod
    def create(cls, folder: Path | None, fingerprint: str, precision: str, dimensions: int) -> Segments:
        """Return an empty set of rows; replaces what is in the folder. Raises ``OSError`` or ``sqlite3.Error``."""
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        created = cls(folder, precision, dimensions)
        created.manifest.set("format", FORMAT)
        created.manifest.set("fingerprint", fingerprint)
        return created

    @classmethod
    def load(cls, folder: Path, fingerprint: str, precision: str, dimensions: int) -> Segments:
        """Return the rows in a folder. Damaged rows are removed and reported.

        Raises ``DualfuseError``, ``OSError`` or ``sqlite3.Error`` if nothing can be used.
        """
        loaded = cls(folder, precision, dimensions)
        if (loaded.manifest.get("format"), loaded.manifest.get("fingerprint")) != (FORMAT, fingerprint):
            loaded.close()
            raise DualfuseError("it holds the embeddings of another model or version, or is damaged")
        for number, count, stamp in loaded.manifest.rows("SELECT number, rows, stamp FROM segments ORDER BY number"):
            loaded._open(number, count, stamp)
        loaded._check_entries()
        return loaded

    @staticmethod
    def status(folder: Path) -> os.stat_result | None:
        """Return the status of the manifest in a folder; None if there is none."""
        path = folder / MANIFEST
        return path.stat() if path.is_file() else None

    def __len__(self) -> int:
        """The number of valid rows."""
        return sum(int(each.living.sum()) for each in self.segments.values())

    def close(self) -> None:
        """Close the manifest."""
        self.manifest.close()

    def add(self, names: Sequence[str], embeddings: Tensor, metadata: Sequence[Metadata]) -> None:
        """Append embeddings (B, D), and remove earlier ones of the same names."""
        self.manifest.begin()  # refuses if another process has changed the rows
        self.remove(names)
        if not self.width:
            self.width = embeddings.shape[1]
            self.manifest.set("width", str(self.width))
            codec(self._precision, self._dimensions, self.width)  # refuses too many dimensions
        start = 0
        while start < len(names):
            segment = self._last()
            end = start + min(len(names) - start, CAPACITY - segment.rows.count)
            first = segment.rows.count
            segment.append(embeddings[start:end])
            block = segment.number, first, end - start, crc32(embeddings[start:end].numpy().data)
            self.manifest.change("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?)", [block])
            rows = range(segment.first + first, segment.first + first + end - start)
            self.manifest.add(rows, names[start:end], metadata[start:end])
            segment.alive[first : segment.rows.count] = True
            start = end

    def remove(self, names: Sequence[str]) -> None:
        """Remove the rows of names; unknown ones are ignored."""
        self._remove_rows(self.manifest.rows_of(names))

    def read(self, rows: Tensor) -> Tensor:
        """Return the embeddings (M, D) of rows."""
        numbers, embeddings = rows // CAPACITY, torch.empty(len(rows), self.width, dtype=torch.float32)
        for number in numbers.unique().tolist():
            chosen = numbers == number
            embeddings[chosen] = self.segments[number].embeddings[rows[chosen] - number * CAPACITY]
        return embeddings

    def masks(self, rows: np.ndarray) -> dict[int, np.ndarray]:
        """Return, by the number of each segment, which of its rows are in ``rows``."""
        masks = {number: np.zeros(segment.rows.count, bool) for number, segment in self.segments.items()}
        for number, mask in masks.items():
            inside = rows[(rows >= number * CAPACITY) & (rows < (number + 1) * CAPACITY)]
            mask[inside - number * CAPACITY] = True
        return masks

    def update(self) -> None:
        """Write the codes that are missing, and make repairs durable."""
        missing = any(each.codes and each.codes.count < each.rows.count for each in self.segments.values())
        if missing or self.manifest.is_changing:
            self.manifest.begin()
            self.commit()

    def commit(self) -> None:
        """Make the changes durable, together or not at all."""
        if not self.manifest.is_changing:
            return
        self._compact()
        for segment in self.segments.values():
            if segment.encode() and segment.codec and segment.codes:
                state = segment.state.numpy().tobytes()
                row = segment.number, segment.codec.name, segment.codes.count, state
                self.manifest.change("INSERT OR REPLACE INTO codes VALUES (?, ?, ?, ?)", [row])
            segment.sync()
            segment.map()
            row = segment.number, segment.rows.count, segment.rows.stamp()
            self.manifest.change("INSERT OR REPLACE INTO segments VALUES (?, ?, ?)", [row])
        self.manifest.commit()
        self._delete_files()

    def copy(self, other: Segments) -> None:
        """Add the rows of ``other``."""
        batch: list[tuple[int, str, Metadata]] = []
        for row, name, text, _ in other.manifest.items():
            batch.append((row, decode_name(name), json.loads(text)))
            if len(batch) == BATCH:
                self._copy(other, batch)
                batch = []
        if batch:
            self._copy(other, batch)

    def _copy(self, other: Segments, batch: Sequence[tuple[int, str, Metadata]]) -> None:
        rows, names, metadata = zip(*batch, strict=True)
        self.add(names, other.read(torch.tensor(rows)), metadata)

    def _last(self) -> Segment:
        """Return the segment to append to."""
        number = max(self.segments, default=-1)
        if number < 0 or self.segments[number].rows.count == CAPACITY:
            number += 1
            self.segments[number] = self._attach(Segment(number, self.folder, self.width))
        return self.segments[number]

    def _attach(self, segment: Segment) -> Segment:
        """Let a segment use the codes that the store scans."""
        if chosen := codec(self._precision, min(self._dimensions, self.width), self.width):
            found = self.manifest.rows(
                "SELECT rows, state FROM codes WHERE segment = ? AND codec = ?", (segment.number, chosen.name)
            )
            count, state = found[0] if found else (0, b"")
            segment.attach(chosen, count, torch.frombuffer(bytearray(state or bytes(4)), dtype=torch.float32))
        return segment

    def _open(self, number: int, count: int, stamp: str) -> None:
        """Open a segment, and remove the rows of its blocks that are damaged, if its file may have changed."""
        segment = self._attach(Segment(number, self.folder, self.width, count))
        self.segments[number] = segment
        try:
            if segment.rows.stamp() != stamp:
                self._check_blocks(segment)
            segment.map()
        except (OSError, ValueError) as error:
            self._damaged(number, 0, count, str(error))
            segment.rows.count = 0
            del self.segments[number]
            self.manifest.change("DELETE FROM segments WHERE number = ?", [(number,)])

    def _check_blocks(self, segment: Segment) -> None:
        blocks = self.manifest.rows("SELECT start, rows, crc FROM blocks WHERE segment = ?", (segment.number,))
        for start, count, crc in blocks:
            if start < segment.rows.count and crc32(segment.rows.values[start : start + count].data) != crc:
                self._damaged(segment.number, start, count, "its content differs from its checksum: bits have flipped")

    def _damaged(self, number: int, start: int, count: int, reason: str) -> None:
        first = number * CAPACITY + start
        logger.warning(
            "%s cannot be used (%s: %d rows of segment %d); the images are embedded again",
            self.folder,
            reason,
            count,
            number,
        )
        found = self.manifest.rows(
            "SELECT row FROM entries WHERE row >= ? AND row < ? AND removed IS NULL", (first, first + count)
        )
        self.manifest.remove([row for (row,) in found])

    def _check_entries(self) -> None:
        """Mark the rows of entries as valid; entries that are damaged, or whose row is missing, are removed."""
        unusable = []
        for row, name, text, crc in self.manifest.items():
            segment = self.segments.get(row // CAPACITY)
            if segment is None or row % CAPACITY >= segment.rows.count or checksum(name, text) != crc:
                unusable.append(row)
            else:
                segment.alive[row % CAPACITY] = True
        if unusable:
            logger.warning(
                "%s cannot be used (%d entries differ from their checksums); the images are embedded again",
                self.folder,
                len(unusable),
            )
            self.manifest.remove(unusable)

    def _remove_rows(self, rows: Sequence[int]) -> None:
        if rows:
            self.manifest.remove(rows)
            for row in rows:
                self.segments[row // CAPACITY].alive[row % CAPACITY] = False

    def _compact(self) -> None:
        """Move the valid rows of segments that are mostly removed to the end, and forget what nobody reads any more."""
        for number, segment in sorted(self.segments.items()):
            dead = segment.rows.count - int(segment.living.sum())
            if dead < max(COMPACTED, segment.rows.count / 2):
                continue
            if number == max(self.segments):
                self.segments[number + 1] = self._attach(Segment(number + 1, self.folder, self.width))
            where = {"first": segment.first, "last": segment.first + CAPACITY, "now": self.manifest.now}
            statement = f"SELECT row, name, metadata FROM entries WHERE row >= :first AND row < :last AND {VISIBLE}"
            found = [
                (row, decode_name(name), json.loads(text)) for row, name, text in self.manifest.rows(statement, where)
            ]
            for start in range(0, len(found), BATCH):
                self._copy(self, found[start : start + BATCH])
            del self.segments[number]
            for table, column in (("segments", "number"), ("blocks", "segment"), ("codes", "segment")):
                self.manifest.change(f"DELETE FROM {table} WHERE {column} = ?", [(number,)])
            self.manifest.change("DELETE FROM entries WHERE removed <= ?", [(self.manifest.version - GRACE,)])

    def _delete_files(self) -> None:
        """Delete the files of segments that are no longer used; stores that were opened before have them mapped."""
        if self.folder is not None:
            for path in self.folder.glob("??????.*"):
                if path.name[:6].isdigit() and int(path.name[:6]) not in self.segments:
                    path.unlink(missing_ok=True)


class Entries(Mapping[str, Metadata]):
    """The metadata of all valid rows by name, read when it is asked for."""

    def __init__(self, rows: Segments) -> None:
        """``rows`` are those of a store."""
        self._rows = rows

    def __getitem__(self, name: str) -> Metadata:
        """Return the metadata of a name; ``KeyError`` if it is not stored."""
        manifest = self._rows.manifest
        statement = f"SELECT metadata FROM entries WHERE name = :name AND {VISIBLE} ORDER BY row DESC LIMIT 1"
        found = manifest.rows(statement, {"name": encode_name(name), "now": manifest.now})
        if not found:
            raise KeyError(name)
        return json.loads(found[0][0])

    def __iter__(self) -> Iterator[str]:
        """Yield the names, in the order of rows."""
        return (name for name, _ in self.stream())

    def __len__(self) -> int:
        """The number of entries."""
        return len(self._rows)

    def stream(self) -> Iterator[tuple[str, Metadata]]:
        """Yield names and metadata, in the order of rows."""
        for _, name, text, _ in self._rows.manifest.items():
            yield decode_name(name), json.loads(text)

    def items(self) -> EntryItems:  # type: ignore[override]  # a view as well, but one that reads every row once
        """Return names and metadata."""
        return EntryItems(self)


class EntryItems(ItemsView[str, Metadata]):
    """The items of :class:`Entries`, read in one pass."""

    def __init__(self, entries: Entries) -> None:
        """``entries`` are viewed."""
        super().__init__(entries)
        self._entries = entries

    def __iter__(self) -> Iterator[tuple[str, Metadata]]:
        """Yield names and metadata."""
        return self._entries.stream()
