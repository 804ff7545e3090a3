"""Readers of text files, record by record: plain text, JSON lines, Parquet, and the texts of tar shards.

A record is read by its location, a number, without reading the records before it. A plain text file is one record.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dualfuse.data.shards.tar_index import TarIndex, mapped
from dualfuse.data.text.captions import parse_texts
from dualfuse.data.text.decode import parse_json
from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.files import check_regular
from dualfuse.io import listing

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

COLUMN = "text"
"""Key of the text in JSON lines, and its column in Parquet."""
CACHED_ROW_GROUPS = 4  # decoded row groups of Parquet files per process


class Documents(Protocol):
    """The records of one file, in UTF-8."""

    @property
    def blank_ends(self) -> bool:
        """Whether a blank line ends a document; otherwise each record is one document."""
        ...

    def locations(self) -> Iterator[int]:
        """Yield the locations of all records, in file order."""
        ...

    def record(self, location: int) -> bytes | mmap.mmap:
        """Return one record; raises DualfuseError with its location and the reason if it is broken."""
        ...


@dataclass(frozen=True)
class FileState:
    """Size and modification time of a file when it was opened; a file that has changed since is not read."""

    path: Path
    size: int
    mtime_ns: int

    @staticmethod
    def of(path: Path) -> FileState:
        """Return the current state of a file."""
        stat = check_regular(path)
        return FileState(path, stat.st_size, stat.st_mtime_ns)

    def bytes(self) -> mmap.mmap:
        """Map the file, which must not be empty; raises ``ChangedFile`` if it has changed or is gone."""
        return mapped(self.path, self.size, self.mtime_ns)


@dataclass(frozen=True)
class PlainText:
    """Plain text with blank lines between documents."""

    file: FileState
    blank_ends: bool = True

    def locations(self) -> Iterator[int]:
        """Yield 0: the file is the only record."""
        yield from (0,) if self.file.size else ()

    def record(self, location: int) -> mmap.mmap:
        """Return the file, memory-mapped."""
        return self.file.bytes()


@dataclass(frozen=True)
class JsonLines:
    """One JSON object per line; its location is the byte offset of the line."""

    file: FileState
    blank_ends: bool = False

    def locations(self) -> Iterator[int]:
        """Yield the offsets of lines that are not blank."""
        if not self.file.size:
            return
        content, start = self.file.bytes(), 0
        while start < self.file.size:
            stop = _line_end(content, start)
            if content[start:stop].strip():
                yield start
            start = stop

    def record(self, location: int) -> bytes:
        """Return the text of an object."""
        content = self.file.bytes()
        line = content[location : _line_end(content, location)]
        value = parse_json(line, f"the line at byte {location:,}")
        return _text(value, f"the line at byte {location:,}")


@dataclass(frozen=True)
class Parquet:
    """A table with a column of texts; locations are row numbers. Row groups are decoded one at a time."""

    file: FileState
    blank_ends: bool = False

    def locations(self) -> Iterator[int]:
        """Yield all row numbers."""
        table = _parquet(self.file)
        if COLUMN not in table.schema_arrow.names:
            raise DualfuseError(
                f"{self.file.path} has no column {COLUMN!r}, but {', '.join(table.schema_arrow.names)}; rename one"
            )
        yield from range(table.metadata.num_rows)

    def record(self, location: int) -> bytes:
        """Return the text of a row."""
        self.file.bytes()  # raises if the file has changed
        metadata, group, first = _parquet(self.file).metadata, 0, 0
        try:
            while location >= first + metadata.row_group(group).num_rows:
                first += metadata.row_group(group).num_rows
                group += 1
            row = _row_group(self.file, group)[location - first]
        except IndexError as error:
            raise DualfuseError(f"row {location:,} is missing, although the file lists it") from error
        return _text({COLUMN: row.as_py()}, f"row {location:,}")


@dataclass(frozen=True)
class TarTexts:
    """The texts of a shard; locations are sample numbers. Images are not read."""

    tar: TarIndex
    blank_ends: bool = False

    def locations(self) -> Iterator[int]:
        """Yield all sample numbers."""
        yield from range(len(self.tar))

    def record(self, location: int) -> bytes:
        """Return the texts of a sample: a line each, those of its .txt member or else of its .json."""
        parts = self.tar.read(location, ("txt", "json"))
        texts, _ = parse_texts(parts, self.tar.key(location))
        if not texts:
            raise DualfuseError(f"sample {self.tar.key(location)} has no text in a member .txt or .json")
        return _encode("\n".join(texts), f"sample {self.tar.key(location)}")


KINDS = {".txt": PlainText, ".jsonl": JsonLines, ".parquet": Parquet}
ENDINGS = (*KINDS, ".tar")
"""Suffixes of text files."""


def open_documents(path: Path) -> Documents:
    """Return the records of a file by its suffix; raises DualfuseError if that is unknown."""
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return TarTexts(TarIndex.of(path))
    if suffix not in KINDS:
        packed = "; unpack it" if suffix in (".gz", ".bz2", ".xz", ".zst", ".zip") else ""
        raise DualfuseError(f"{path} ends in {path.suffix!r}; text is read from {', '.join(ENDINGS)}{packed}")
    return KINDS[suffix](FileState.of(path))


def _line_end(content: mmap.mmap, start: int) -> int:
    """Return the end of the line that begins at ``start``, including its line break."""
    return content.find(b"\n", start) + 1 or len(content)


def _text(value: Any, where: str) -> bytes:  # Any: JSON
    text = value.get(COLUMN) if isinstance(value, dict) else None
    if not isinstance(text, str):
        contents = listing(value) if isinstance(value, dict) else type(value).__name__
        raise DualfuseError(f"{where} has no {COLUMN!r} that is a string, but {contents}")
    return _encode(text, where)


def _encode(text: str, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DualfuseError(f"{where} holds half of a surrogate pair: {error}") from error


@lru_cache(maxsize=64)
def _parquet(file: FileState) -> ParquetFile:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError(f"reading {file.path}", "arrow") from error
    try:
        return ParquetFile(file.path, memory_map=True)
    except Exception as error:  # pyarrow lets out whatever a damaged file makes it raise
        raise DualfuseError(f"{file.path} is not a Parquet file: {error}") from error


@lru_cache(maxsize=CACHED_ROW_GROUPS)
def _row_group(file: FileState, group: int) -> Any:  # Any: pyarrow has no types
    try:
        return _parquet(file).read_row_group(group, columns=[COLUMN]).column(0)
    except Exception as error:  # as above
        raise DualfuseError(f"row group {group} cannot be decoded: {error}") from error
