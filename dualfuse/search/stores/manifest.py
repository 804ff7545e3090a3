"""The transactional half of an exact store: which rows are valid, their names and metadata, in one SQLite file.

A row is removed by writing the version that no longer has it, so that a store that was opened before still reads the
version that it was opened with.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from dualfuse.errors import DualfuseError
from dualfuse.search.stores.filters import Metadata

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS segments (number INTEGER PRIMARY KEY, rows INTEGER NOT NULL, stamp TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS blocks (segment INTEGER, start INTEGER, rows INTEGER, crc INTEGER,
                                   PRIMARY KEY (segment, start));
CREATE TABLE IF NOT EXISTS codes (segment INTEGER, codec TEXT, rows INTEGER, state BLOB, PRIMARY KEY (segment, codec));
CREATE TABLE IF NOT EXISTS entries (row INTEGER PRIMARY KEY, name BLOB NOT NULL, metadata TEXT NOT NULL, crc INTEGER,
                                    added INTEGER NOT NULL, removed INTEGER);
CREATE UNIQUE INDEX IF NOT EXISTS live ON entries (name) WHERE removed IS NULL;
"""
VISIBLE = "added <= :now AND (removed IS NULL OR removed > :now)"
CHUNK = 500  # parameters of one statement


class Manifest:
    """Names and metadata by row number, and the tables of segments; changes wait for :meth:`commit`."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the file; None: in memory. Raises ``sqlite3.Error`` for a file that is damaged or not ours."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.lock, self.is_changing = threading.RLock(), False
        self._connection = sqlite3.connect(
            path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False
        )
        try:
            # a full cache would lock readers out until the commit
            self._connection.executescript("PRAGMA cache_spill = OFF; PRAGMA synchronous = FULL;")
            self._connection.executescript(SCHEMA)
            self.version = int(self.get("version") or 0)
        except BaseException:
            self._connection.close()
            raise

    @property
    def now(self) -> int:
        """The version that is read: the committed one, or the one that is being written."""
        return self.version + self.is_changing

    def get(self, key: str) -> str:
        """Return a setting; empty if it was never set."""
        found = self.rows("SELECT value FROM meta WHERE key = ?", (key,))
        return found[0][0] if found else ""

    def set(self, key: str, value: str) -> None:
        """Change a setting."""
        self.change("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(key, value)])

    def rows(self, statement: str, parameters: Any = ()) -> list[Any]:  # Any: what SQLite takes and gives
        """Return the result of a query."""
        with self.lock:
            return self._connection.execute(statement, parameters).fetchall()

    def begin(self) -> None:
        """Begin the transaction that :meth:`commit` ends, unless there is one."""
        with self.lock:
            if self.is_changing:
                return
            self._connection.execute("BEGIN IMMEDIATE")
            self.is_changing = True
            if int(self.get("version") or 0) != self.version:
                self.rollback()
                raise DualfuseError("another process has changed the index meanwhile; open it again")

    def change(self, statement: str, parameters: Iterable[Any]) -> None:  # Any: what SQLite takes
        """Run a statement for each of ``parameters`` in the transaction."""
        with self.lock:
            self.begin()
            self._connection.executemany(statement, parameters)

    def commit(self) -> None:
        """Make the changes durable and visible for others."""
        with self.lock:
            self.set("version", str(self.version + 1))
            self._connection.execute("COMMIT")
            self.version, self.is_changing = self.version + 1, False

    def rollback(self) -> None:
        """Forget the changes."""
        with self.lock:
            if self.is_changing:
                self._connection.execute("ROLLBACK")
                self.is_changing = False

    def close(self) -> None:
        """Close the file; changes that were not committed are lost."""
        self._connection.close()

    def add(self, rows: Sequence[int], names: Sequence[str], metadata: Sequence[Metadata]) -> None:
        """Record names and metadata of new rows."""
        self.begin()  # decides the version
        texts = [(encode_name(name), json.dumps(dict(each))) for name, each in zip(names, metadata, strict=True)]
        values = ((row, *text, checksum(*text), self.now) for row, text in zip(rows, texts, strict=True))
        self.change("INSERT INTO entries VALUES (?, ?, ?, ?, ?, NULL)", values)

    def remove(self, rows: Iterable[int]) -> None:
        """Record that rows are removed."""
        self.begin()
        self.change("UPDATE entries SET removed = ? WHERE row = ?", [(self.now, row) for row in rows])

    def rows_of(self, names: Iterable[str]) -> list[int]:
        """Return the rows of those names that are stored."""
        statement = "SELECT row FROM entries WHERE name IN (%s) AND removed IS NULL"
        return [row for (row,) in self._chunked(statement, list(map(encode_name, names)))]

    def names_of(self, rows: Iterable[int]) -> dict[int, str]:
        """Return the names of rows."""
        found = self._chunked("SELECT row, name FROM entries WHERE row IN (%s)", list(rows))
        return {row: decode_name(name) for row, name in found}

    def items(self) -> Iterator[tuple[int, bytes, str, int]]:
        """Yield row, encoded name, metadata as JSON and checksum of every visible entry, in the order of rows."""
        last = -1
        statement = (
            f"SELECT row, name, metadata, crc FROM entries WHERE row > :last AND {VISIBLE} ORDER BY row LIMIT 5000"
        )
        while found := self.rows(statement, {"now": self.now, "last": last}):
            yield from found
            last = found[-1][0]

    def _chunked(self, statement: str, values: Sequence[Any]) -> Iterator[Any]:  # Any: what SQLite takes and gives
        for start in range(0, len(values), CHUNK):
            chunk = values[start : start + CHUNK]
            yield from self.rows(statement % ",".join("?" * len(chunk)), chunk)


def checksum(name: bytes, metadata: str) -> int:
    """Return the checksum of an entry."""
    return crc32(metadata.encode(), crc32(name))


def encode_name(name: str) -> bytes:
    """Return a name as bytes, also one that is not valid Unicode (file names may be any bytes)."""
    return name.encode("utf-8", "surrogatepass")


def decode_name(name: bytes) -> str:
    """Return the name of :func:`encode_name`."""
    return name.decode("utf-8", "surrogatepass")
