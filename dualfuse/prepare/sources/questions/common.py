"""Helpers for published question sets: large JSON files, and duplicate questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dualfuse.errors import DualfuseError
from dualfuse.files import MAX_TABLE, open_regular, read_bounded
from dualfuse.prepare.sources.rows import UNREADABLE, TableRow, json_lines
from dualfuse.prepare.sources.source import Item

HEAD = 4096  # bytes by which a large file is recognized


def read_json(path: Path, reduce: Callable[[dict[str, Any]], object] | None = None) -> Any:  # foreign: any values
    """Return the content of a JSON file; ``reduce`` converts its objects to smaller values while it is parsed.

    The files have millions of objects, each ten times as large in memory as the values that are used. Raises
    ``DualfuseError`` with the path if the file is not JSON, or if ``reduce`` misses a key.
    """
    try:
        return json.loads(read_bounded(path, MAX_TABLE), object_hook=reduce)
    except KeyError as error:
        raise DualfuseError(f"{path} has an entry without {error}; is it the published file?") from None
    except (ValueError, RecursionError) as error:
        raise DualfuseError(f"{path} is not a JSON file, or is truncated ({error}); download it again") from None


def entries(path: Path, name: str, reduce: Callable[[dict[str, Any]], object]) -> list[Any]:
    """Return the list called ``name`` in the object at ``path``, with entries converted by ``reduce``."""
    content = read_json(path, reduce)
    if not isinstance(content, Mapping) or not isinstance(content.get(name), list):
        raise DualfuseError(f"{path} has no list {name!r}; is it the published file?")
    return content[name]


def line_items(files: Iterable[Path], make: Callable[[TableRow, str, Path], Item]) -> Iterator[Item]:
    """Yield the items that ``make`` returns for the JSON lines of several files: (cells, "FILE:NUMBER", file)."""
    for path in files:
        for row in json_lines(path):
            where = f"{path.name}:{row.number}"
            if row.problem:
                yield Item(where, b"", problem=UNREADABLE, detail=row.problem)
            else:
                yield make(row.cells, where, path)


def head(path: Path) -> bytes:
    """Return the first bytes of a file."""
    with open_regular(path) as file:
        return file.read(HEAD)


class DuplicateFinder:
    """Detector of duplicate questions."""

    def __init__(self) -> None:
        """Start without any questions."""
        self._ids: set[object] = set()
        self._questions: set[int] = set()

    def check(self, number: object, image: str, text: str) -> tuple[str, str]:
        """Return the problem and the note, empty if there is none, of the question ``text`` with the id ``number``.

        A duplicate id is a problem. A duplicate text about the same image is only noted, because the published sets ask
        other people again and count the answers.
        """
        question = hash((image, text))  # collisions among millions are unlikely
        problem = "its id came before" if number in self._ids else ""
        note = "the same text about the same image came before" if question in self._questions else ""
        self._ids.add(number)
        self._questions.add(question)
        return problem, note
