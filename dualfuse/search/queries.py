"""Queries: texts and image files, one or a file with many, and the hits of each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dualfuse.data.text.decode import read_lines
from dualfuse.errors import DualfuseError
from dualfuse.prepare.sources.cells import cell_image, cell_texts
from dualfuse.prepare.sources.columns import IMAGE_COLUMNS, TEXT_COLUMNS
from dualfuse.prepare.sources.image_finder import ImageFinder
from dualfuse.prepare.sources.pairs.folder import is_image_name
from dualfuse.prepare.sources.rows import TableRow, read_rows
from dualfuse.prepare.sources.source import Slice
from dualfuse.printable import brief
from dualfuse.search.index import Hit, Index
from dualfuse.search.stores.filters import Filter

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
TEXTS = ("query", "queries", "question", *TEXT_COLUMNS)


@dataclass(frozen=True)
class Query:
    """A text or the path of an image, as it was given, with its ``id`` in a file of queries (None: without)."""

    text: str
    id: object = None
    problem: str = ""
    """Reason for which a row of the file is not a query; empty: none."""
    image: Slice | bytes | None = None
    """The image of a row that has one."""


@dataclass(frozen=True)
class Answer:
    """The hits of a query, best first, or the ``problem`` for which there are none."""

    query: Query
    hits: tuple[Hit, ...] = ()
    problem: str = ""
    is_truncated: bool = False
    """Whether the text was truncated to the length that the model reads."""

    def record(self) -> dict[str, object]:
        """Return the answer as JSON values."""
        named = {"query": self.query.text} | ({} if self.query.id is None else {"id": self.query.id})
        if self.problem:
            return named | {"problem": self.problem}
        hits = [{"rank": rank, **vars(hit)} for rank, hit in enumerate(self.hits, start=1)]
        return named | ({"is_truncated": True} if self.is_truncated else {}) | {"hits": hits}


@dataclass(frozen=True)
class SearchOptions:
    """How queries are answered; see :meth:`~dualfuse.search.index.Index.search`."""

    top: int = 10
    rerank: int | None = None
    """None: as the model's validation suggests for texts, and 0 for images."""
    where: Filter | None = None
    min_probability: float = 0.0


def answer(index: Index, query: Query, options: SearchOptions, folder: Path | None = None) -> Answer:
    """Search for one query; see :func:`interpret`. Raises ``DualfuseError`` or ``OSError`` if it cannot be used."""
    if query.problem:
        raise DualfuseError(query.problem)
    image, text = query.image.read() if isinstance(query.image, Slice) else query.image, index.loaded.processor.text
    question = image or interpret(query.text, folder)
    rerank = options.rerank
    if rerank is None:
        rerank = index.default_rerank if isinstance(question, str) else 0
    hits = index.search(
        question, top=options.top, rerank=rerank, where=options.where, min_probability=options.min_probability
    )
    return Answer(query, hits, is_truncated=isinstance(question, str) and text.encode(question).truncated)


def answers(index: Index, queries: Iterable[Query], options: SearchOptions, folder: Path) -> Iterator[Answer]:
    """Yield the answer to each query; paths of images are also looked up in ``folder``."""
    for query in queries:
        try:
            yield answer(index, query, options, folder)
        except (DualfuseError, OSError) as error:
            yield Answer(query, problem=str(error))


def interpret(query: str, folder: Path | None = None) -> str | Path:
    """Return the path of the file that a query names (also relative to ``folder``), or its text if there is no file.

    Raises ``DualfuseError`` for the missing file of a query with the ending of an image file.
    """
    for path in (Path(query), *([folder / query] if folder else [])):
        if os.path.isfile(path):  # Path.is_file raises OSError for a name that is too long
            return path
    if is_image_name(query) and "\n" not in query:
        raise DualfuseError(
            f"{brief(query)} does not exist; a query with the ending of an image file is taken for its path"
        )
    return query


def read_queries(path: Path) -> Iterator[Query]:
    """Yield the queries of a text file, one per line, or of a table with a column such as "query", and maybe "id".

    A row may have an image instead, as in tables of ``prepare``. Raises ``DualfuseError`` if the first row has no such
    column, and for a text that cannot be decoded.
    """
    if path.suffix.lower() not in TABLES:
        yield from map(Query, read_lines(path))
        return
    find = ImageFinder(path.parent)
    for row in read_rows(path):
        plain = {name.strip().lower(): cell for name, cell in row.cells.items()}
        if row.number == 1 and not (row.problem or plain.keys() & {*TEXTS, *IMAGE_COLUMNS}):
            raise DualfuseError(f"{path} has no column called query, text or image; it has {brief(', '.join(plain))}")
        name = plain.get("id", row.number)
        try:
            yield Query("", name, row.problem) if row.problem else _query(plain, name, find)
        except DualfuseError as error:
            yield Query("", name, str(error))


def _query(cells: TableRow, name: object, find: ImageFinder) -> Query:
    """Return the query in a row whose columns have lower-case names; DualfuseError for a cell of the wrong type."""
    text = next(("\n".join(cell_texts(cells[column])) for column in TEXTS if cells.get(column)), "")
    image = next((cell_image(cells[column]) for column in IMAGE_COLUMNS if cells.get(column)), "")
    if text or not image:
        return Query(text.strip(), name)
    return Query("", name, image=image) if isinstance(image, bytes) else Query(image, name, image=find(image))
