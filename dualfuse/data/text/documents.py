"""Files of text, record by record: plain text, JSON lines, Parquet, and the texts of tar shards.

A record is found by its place, a number, without reading those before it. In plain text the whole file is one record.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dualfuse.data.shards.tar_index import TarIndex, mapped
from dualfuse.errors import DualfuseError, MissingExtraError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

COLUMN = "text"
"""Key of the text in JSON lines, column of it in Parquet."""
ROW_GROUPS = 4  # of Parquet files, decoded and kept in one process


class Documents(Protocol):
    """The records of one file, each UTF-8."""

    @property
    def blank_ends(self) -> bool:
        """Whether a blank line ends a document; otherwise only the record does."""
        ...

    def places(self) -> Iterator[int]:
        """List where the records are, in the order of the file."""
        ...

    def record(self, place: int) -> bytes | mmap.mmap:
        """Return one record; ValueError, which says where it is and what is wrong, for a broken one."""
        ...


@dataclass(frozen=True)
class FileState:
    """A file as it was when it was opened; one that has changed since is not read."""

    path: Path
    size: int
    mtime_ns: int

    @staticmethod
    def of(path: Path) -> FileState:
        """Return the state of a file now."""
        found = path.stat()
        return FileState(path, found.st_size, found.st_mtime_ns)

    def bytes(self) -> mmap.mmap:
        """Return the contents, which must not be empty; ``ChangedFile`` if the file has changed or gone."""
        return mapped(self.path, self.size, self.mtime_ns)


@dataclass(frozen=True)
class PlainText:
    """Text as it is, with blank lines between documents."""

    file: FileState
    blank_ends: bool = True

    def places(self) -> Iterator[int]:
        """Return 0: the one record is the file."""
        yield from (0,) if self.file.size else ()

    def record(self, place: int) -> mmap.mmap:
        """Return the whole file, without reading it."""
        return self.file.bytes()


@dataclass(frozen=True)
class JsonLines:
    """A JSON object a line; its place is where the line begins, in bytes."""

    file: FileState
    blank_ends: bool = False

    def places(self) -> Iterator[int]:
        """List the beginnings of lines that are not blank."""
        if not self.file.size:
            return
        content, start = self.file.bytes(), 0
        while start < self.file.size:
            stop = _line_end(content, start)
            if content[start:stop].strip():
                yield start
            start = stop

    def record(self, place: int) -> bytes:
        """Return the text of the object."""
        content = self.file.bytes()
        try:
            said = json.loads(content[place : _line_end(content, place)])
        except (ValueError, RecursionError) as error:
            raise DualfuseError(f"the line at byte {place:,} is no JSON: {error}") from error
        return _text(said, f"the line at byte {place:,}")


@dataclass(frozen=True)
class Parquet:
    """A table with a column of texts; places are row numbers. It is decoded a row group at a time."""

    file: FileState
    blank_ends: bool = False

    def places(self) -> Iterator[int]:
        """List all rows."""
        table = _parquet(self.file)
        if COLUMN not in table.schema_arrow.names:
            raise DualfuseError(
                f"{self.file.path} has no column {COLUMN!r}, but {', '.join(table.schema_arrow.names)}; rename one"
            )
        yield from range(table.metadata.num_rows)

    def record(self, place: int) -> bytes:
        """Return the text of a row."""
        self.file.bytes()  # to see that it has not changed
        metadata, group, first = _parquet(self.file).metadata, 0, 0
        try:
            while place >= first + metadata.row_group(group).num_rows:
                first += metadata.row_group(group).num_rows
                group += 1
            row = _row_group(self.file, group)[place - first]
        except IndexError as error:
            raise DualfuseError(f"row {place:,} is not there, though the file says so") from error
        return _text({COLUMN: row.as_py()}, f"row {place:,}")


@dataclass(frozen=True)
class TarTexts:
    """The texts of a shard; places are the numbers of its samples. Images beside them are not read."""

    tar: TarIndex
    blank_ends: bool = False

    def places(self) -> Iterator[int]:
        """List all samples."""
        yield from range(len(self.tar))

    def record(self, place: int) -> bytes:
        """Return the .txt member of a sample, or the text in its .json."""
        parts = self.tar.read(place, ("txt", "json"))
        where = f"sample {self.tar.key(place)}"
        if "txt" in parts:
            return parts["txt"]
        if "json" not in parts:
            raise DualfuseError(f"{where} has neither .txt nor .json")
        try:
            return _text(json.loads(parts["json"]), where)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise DualfuseError(f"{where}: broken json: {error}") from error


KINDS = {".txt": PlainText, ".jsonl": JsonLines, ".parquet": Parquet}
ENDINGS = (*KINDS, ".tar")
"""Of the files that hold text."""


def open_documents(path: Path) -> Documents:
    """Return the records of a file, by its ending; DualfuseError for one that is unknown."""
    if path.suffix == ".tar":
        return TarTexts(TarIndex.of(path))
    if path.suffix not in KINDS:
        packed = "; unpack it" if path.suffix in (".gz", ".bz2", ".xz", ".zst", ".zip") else ""
        raise DualfuseError(f"{path} ends in {path.suffix!r}; text is read from {', '.join(ENDINGS)}{packed}")
    return KINDS[path.suffix](FileState.of(path))


def _line_end(content: mmap.mmap, start: int) -> int:
    """Return where the line from ``start`` on ends, its line break included."""
    return content.find(b"\n", start) + 1 or len(content)


def _text(said: Any, where: str) -> bytes:  # Any: JSON
    text = said.get(COLUMN) if isinstance(said, dict) else None
    if not isinstance(text, str):
        found = ", ".join(map(str, list(said)[:8])) if isinstance(said, dict) else type(said).__name__
        raise DualfuseError(f"{where} has no {COLUMN!r} that is a string, but {found or 'nothing'}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DualfuseError(f"{where} holds half a character: {error}") from error


@lru_cache(maxsize=64)
def _parquet(file: FileState) -> ParquetFile:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError(f"reading {file.path}", "arrow") from error
    try:
        return ParquetFile(file.path, memory_map=True)
    except Exception as error:  # pyarrow lets out whatever a damaged file makes it raise
        raise DualfuseError(f"{file.path} is no Parquet file: {error}") from error


@lru_cache(maxsize=ROW_GROUPS)
def _row_group(file: FileState, group: int) -> Any:  # Any: pyarrow has no types
    try:
        return _parquet(file).read_row_group(group, columns=[COLUMN]).column(0)
    except Exception as error:  # as above
        raise DualfuseError(f"row group {group} cannot be decoded: {error}") from error
