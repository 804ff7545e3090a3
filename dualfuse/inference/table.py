"""Answers for every row of a table, some rows at a time; rows that cannot be used are told of and counted."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from dualfuse.data.parallel_map import parallel_map
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.errors import DualfuseError
from dualfuse.hub import LoadedModel
from dualfuse.inference.heads import Head, head_of
from dualfuse.inference.prediction import Prediction
from dualfuse.io import atomic_write
from dualfuse.prepare.sources.columns import IMAGE_COLUMNS, TEXT_COLUMNS
from dualfuse.prepare.sources.image_finder import ImageFinder
from dualfuse.prepare.sources.rows import TableRow, read_rows
from dualfuse.progress import track

SECOND = "image_2"
"""The column of the second image, for models that compare two."""
CELLS: tuple[str, ...] = ("row", "id", "image", "text", "answer", "probability", "match", "cosine", "filled", "problem")
"""The columns of a csv; a jsonl file holds all answers of a row, not the likeliest alone."""


@dataclass(frozen=True)
class TablePrediction:
    """What came of one row (counted from 1): a prediction, or why there is none."""

    row: int
    asked: Mapping[str, object]
    """Of the table: "text", "image" if the row names one, "id" if it has one."""
    prediction: Prediction | None
    problem: str = ""

    def record(self) -> dict[str, object]:
        """Return all that is known, as JSON values."""
        said = {"problem": self.problem} if self.prediction is None else self.prediction.record()
        return {"row": self.row, **self.asked, **said}

    def line(self) -> str:
        """Return the record as JSON in one line."""
        return json.dumps(self.record(), ensure_ascii=False, default=str)  # an id may be a date of a parquet file

    def cells(self) -> dict[str, object]:
        """Return the likeliest answer in columns of ``CELLS``."""
        record = self.record()
        if self.prediction and self.prediction.answers:
            record |= vars(self.prediction.answers[0])
        return {name: record[name] for name in CELLS if name in record}


def predict_table(
    model: LoadedModel, table: Path, *, top: int = 5, batch: int = 32, workers: int = 0
) -> Iterator[TablePrediction]:
    """Return the answers to the rows of a csv, tsv, json, jsonl or parquet table, in its order.

    Columns are found by their usual names, such as "image" and "text" or "question"; a second image is in
    "image_2". Images are named relative to the table, or parquet holds them as bytes, and are read by ``workers``
    threads (0: one per processor). Raises ``DualfuseError`` if there is no row, or no such column; a row that cannot be
    used gives a ``problem``.
    """
    head, read = head_of(model), _reader(table)
    rows = parallel_map(partial(_read, head, read), enumerate(read_rows(table), start=1), workers)
    pieces = (result for _, result in rows)
    while piece := list(islice(pieces, batch)):
        good = [row for _, row in piece if not isinstance(row, str)]
        predictions = iter(head.answer(good, top) if good else ())
        for (number, asked), row in piece:
            yield (
                TablePrediction(number, asked, None, row)
                if isinstance(row, str)
                else TablePrediction(number, asked, next(predictions))
            )


def followed(answers: Iterable[TablePrediction], table: Path) -> Iterator[TablePrediction]:
    """Return the answers, and shows how many of the table's rows are done."""
    return track(answers, total=sum(1 for _ in read_rows(table)), what="rows")


@contextmanager
def writer(path: Path) -> Iterator[Callable[[TablePrediction], None]]:
    """Return what writes answers to ``path``, .jsonl or .csv; the file is there when all are written."""
    if path.suffix not in (".jsonl", ".csv"):
        raise DualfuseError(f"{path} should end in .jsonl, for all answers of each row, or .csv, for the likeliest")
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            table = csv.DictWriter(file, CELLS, lineterminator="\n")
            table.writeheader()
            yield lambda answer: table.writerow(answer.cells())
        else:
            yield lambda answer: print(answer.line(), file=file)


Question = tuple[dict[str, object], Callable[[], Sample]]


def _reader(table: Path) -> Callable[[TableRow], Question]:
    """Return what turns a row into what it asks; columns are those of the first row that can be read."""
    first = next((row for row in read_rows(table) if row is not None), None)
    if first is None:
        raise DualfuseError(
            f"{table} holds no row that can be read; a table has a line of column names and lines below"
        )
    plain = {name.strip().lower(): name for name in first}
    texts = [plain[name] for name in ("question", *TEXT_COLUMNS) if name in plain]
    images = [plain[name] for name in IMAGE_COLUMNS if name in plain][:1]
    if not (texts or images):
        raise DualfuseError(f"{table} has no column called image, text or question; it has {', '.join(first)}")
    images += [plain[SECOND]] if SECOND in plain else []
    return partial(_question, ImageFinder(table.parent), "".join(texts[:1]), tuple(images), plain.get("id", ""))


def _question(find: ImageFinder, text: str, images: tuple[str, ...], name: str, row: TableRow) -> Question:
    words = str(row.get(text) or "")
    cells = [row.get(column) for column in images]
    asked: dict[str, object] = {"id": row[name]} if name in row else {}
    asked |= {"image": cells[0]} if cells and isinstance(cells[0], str) else {}
    return asked | {"text": words}, partial(_sample, find, words, cells)


def _sample(find: ImageFinder, text: str, cells: list[object]) -> Sample:
    first, *others = [_image(cell, find) for cell in cells if cell] or [b""]
    return Sample("row", first, (text,) if text.strip() else (), other_images=tuple(others))


def _image(cell: object, find: ImageFinder) -> bytes:
    match cell:
        case bytes():
            return cell
        case {"bytes": bytes(data)}:  # how Hugging Face data sets store images
            return data
        case str() if cell.lower().startswith(("http://", "https://")):
            raise DualfuseError("it names its image by URL, and dualfuse downloads none")
        case str():
            return find(cell.strip()).read()
    raise DualfuseError(f"its image is a {type(cell).__name__}; the path of one is needed")


def _read(head: Head, read: Callable[[TableRow], Question], numbered: tuple[int, TableRow | None]):
    """Return ((number, what is asked), row of the head, or why there is none)."""
    number, row = numbered
    if row is None:
        return (number, {}), "the row cannot be read"
    asked, sample = read(row)
    try:
        return (number, asked), head.read(sample())
    except BrokenSample as error:
        return (number, asked), error.reason
    except OSError as error:
        return (number, asked), f"its image cannot be read: {error.strerror or error}"
    except ValueError as error:
        return (number, asked), str(error)
