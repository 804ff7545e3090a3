"""The reader of csv, tsv, json, jsonl and parquet tables, row by row."""

from __future__ import annotations

import itertools
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dualfuse.data.text.decode import parse_json, stream_lines
from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.files import MAX_TABLE, read_bounded

TableRow = Mapping[str, object]
UNREADABLE = "unreadable row"
MAX_CELL_LINES = 1000
"""Number of lines in which the quotation mark of a cell has to be closed."""
UNCLOSED, MISPLACED = "a quotation mark that is not closed", "quotation marks inside a quoted cell"
_CELL = r'(?: *"([^"]*(?:""[^"]*)*)" *|(?! *") *([^{0}]*))({0}|\Z)'
_OPEN = re.compile(r' *"[^"]*(?:""[^"]*)*\Z')
_NUMBER_OR_FILE = re.compile(r"\d+(?:\.\d+)?|\S*\w\.[A-Za-z]\w{1,4}|https?://\S+")


@dataclass(frozen=True)
class Row:
    """One row of a table: its number, counted from 1, and its cells by column, or why it cannot be read."""

    number: int
    cells: TableRow = field(default_factory=dict[str, object])
    problem: str = ""


def read_rows(path: Path, encoding: str = "") -> Iterator[Row]:
    """Yield all rows of the table at ``path``, by its suffix; unreadable ones have a ``problem``.

    Raises DualfuseError if the file cannot be decoded, is damaged as a whole, or has two columns of one name.
    """
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return json_lines(path, encoding)
        case ".json":
            return _json(path, encoding)
        case ".parquet":
            return _parquet(path)
        case _:
            return _separated(path, encoding)


def json_lines(path: Path, encoding: str = "") -> Iterator[Row]:
    """Yield the JSON objects of a file with one per line; blank lines are not counted."""
    lines = ((number, line) for number, line in enumerate(stream_lines(path, encoding), start=1) if line.strip())
    for number, (line_number, line) in enumerate(lines, start=1):
        try:
            yield _object(number, parse_json(line, f"line {line_number:,}"), f"line {line_number:,}")
        except DualfuseError as error:
            yield Row(number, problem=str(error))


def _json(path: Path, encoding: str) -> Iterator[Row]:
    for number, value in enumerate(parse_json(read_bounded(path, MAX_TABLE), path, encoding), start=1):
        yield _object(number, value, f"entry {number:,}")


def _object(number: int, value: object, name: str) -> Row:
    if isinstance(value, dict):
        return Row(number, value)
    return Row(number, problem=f"{name} holds a {type(value).__name__}; an object is needed")


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(f"reading {path}", "arrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_names(file.schema_arrow.names, path)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(batch_size=256))
            yield from (Row(number, cells) for number, cells in enumerate(rows, start=1))
    except DualfuseError:
        raise
    except Exception as error:  # pyarrow raises all kinds of errors for damaged files
        raise DualfuseError(f"{path} is not a Parquet file, or is damaged: {error}") from error


def _separated(path: Path, encoding: str) -> Iterator[Row]:
    lines = ((number, line) for number, line in enumerate(stream_lines(path, encoding), start=1) if line.strip())
    if first := next(lines, None):
        yield from _SeparatedRows(path, first[1], lines)


class _SeparatedRows:
    """The rows below a line of column names; the separator is the most frequent one in that line.

    A quoted cell may have several lines. If it is not closed, or holds lines that look like rows, the quotation mark is
    a mistake: its row has a problem, and the next line is a row again.
    """

    def __init__(self, path: Path, header: str, lines: Iterator[tuple[int, str]]) -> None:
        """``lines`` are the numbered lines below ``header``."""
        if "\r" in header:
            raise DualfuseError(f"the lines of {path} end in carriage returns alone; save it with Unix line ends")
        delimiter = max(",\t;|", key=header.count)  # Flickr30k's results.csv is separated by "|"
        self._delimiter = delimiter if delimiter in header else "\0"  # one column: no text contains NUL
        self._cell = re.compile(_CELL.format(re.escape(self._delimiter)))
        self._lines, self._waiting = lines, deque[tuple[int, str]]()
        cells, mistake = self._parse(header)
        if mistake:
            raise DualfuseError(f"the line with the names of the columns of {path} has {mistake}")
        self._names: list[str] = []
        self._names = [name.strip() for name in self._trim(cells)]
        _check_names([name for name in self._names if name], path)

    def __iter__(self) -> Iterator[Row]:
        """Yield all rows."""
        for number in itertools.count(1):
            if (line := self._next()) is None:
                return
            cells, problem = self._record(line[1])
            if problem:
                yield Row(number, problem=f"line {line[0]:,}: {problem}")
            else:
                yield Row(number, dict(zip(self._names, cells, strict=True)))

    def _next(self) -> tuple[int, str] | None:
        return self._waiting.popleft() if self._waiting else next(self._lines, None)

    def _record(self, line: str) -> tuple[list[str], str]:
        """Return the cells of the row that begins with ``line``, and what is wrong with it."""
        (cells, mistake), text = self._parse(line), line
        further: list[tuple[int, str]] = []
        while mistake == UNCLOSED and len(further) < MAX_CELL_LINES and (following := self._next()):
            further.append(following)
            text += f"\n{following[1]}"
            if '"' in following[1]:
                cells, mistake = self._parse(text)
        if further and (mistake or len(self._trim(cells)) != len(self._names) or any(map(self._has_rows, cells))):
            self._waiting.extendleft(reversed(further))
            return [], UNCLOSED
        if mistake == MISPLACED and (literal := self._split(line)):
            return literal, ""
        cells = self._trim(cells)
        if not mistake and len(cells) != len(self._names):
            mistake = f"{len(cells)} cells, but the table has {len(self._names)} columns"
        return cells, mistake

    def _parse(self, text: str) -> tuple[list[str], str]:
        """Return the cells of a text, and what is wrong with its quotation marks."""
        if '"' not in text:
            return [cell.lstrip(" ") for cell in text.split(self._delimiter)], ""
        cells, start = list[str](), 0
        while match := self._cell.match(text, start):
            quoted, plain, separator = match.groups()
            cells.append(plain if quoted is None else quoted.replace('""', '"'))
            start = match.end()
            if not separator:
                return cells, ""
        return cells, UNCLOSED if _OPEN.match(text, start) else MISPLACED

    def _split(self, line: str) -> list[str]:
        """Return the cells of a line whose quotation marks are literal; none if that is doubtful."""
        cells = self._trim([cell.strip(" ") for cell in line.split(self._delimiter)])
        if self._delimiter in ",;":
            if any(cell.startswith('"') != cell.endswith('"') or cell == '"' for cell in cells):
                return []
            cells = [cell[1:-1] if cell.startswith('"') else cell for cell in cells]
        return cells if len(cells) == len(self._names) else []

    def _has_rows(self, cell: str) -> bool:
        """Return whether a cell has several lines, of which one looks like a row of the table."""
        rows = [line.split(self._delimiter) for line in cell.split("\n")] if "\n" in cell else []
        return any(
            len(cells) == len(self._names) > 1
            and (self._delimiter in "\t|" or any(_NUMBER_OR_FILE.fullmatch(cell.strip()) for cell in cells))
            for cells in rows
        )

    def _trim(self, cells: list[str]) -> list[str]:
        """Remove empty cells beyond the columns: separators at the end of a line."""
        while len(cells) > max(1, len(self._names)) and not cells[-1].strip():
            cells = cells[:-1]
        return cells


def _check_names(names: list[str], path: Path) -> None:
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise DualfuseError(f"{path} has several columns called {', '.join(repeated)}; rename all but one")
