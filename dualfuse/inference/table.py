"""Predictions for every row of a table; rows that cannot be used are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dualfuse.data.parallel_map import parallel_map
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.errors import DualfuseError
from dualfuse.hub import LoadedModel
from dualfuse.io import atomic_write
from dualfuse.prepare.sources.cells import cell_image, cell_texts
from dualfuse.prepare.sources.columns import IMAGE_COLUMNS, TEXT_COLUMNS
from dualfuse.prepare.sources.image_finder import ImageFinder
from dualfuse.prepare.sources.rows import Row, TableRow, read_rows
from dualfuse.printable import csv_line, json_line
from dualfuse.progress import track
from dualfuse.tasks.prediction import Prediction

SECOND = "image_2"
"""The column of the second image, for models that compare two."""
CELLS: tuple[str, ...] = ("row", "id", "image", "text", "answer", "probability", "match", "cosine", "filled", "problem")
"""The columns of a csv, which has the best answer of a row; a jsonl file has all answers."""


@dataclass(frozen=True)
class TablePrediction:
    """The prediction for one row (counted from 1), or the reason why there is none."""

    row: int
    inputs: Mapping[str, object]
    """From the table: "text", "image" if the row names one, "id" if it has one."""
    prediction: Prediction | None
    problem: str = ""

    def record(self) -> dict[str, object]:
        """Return all fields as JSON values."""
        output = {"problem": self.problem} if self.prediction is None else self.prediction.record()
        return {"row": self.row, **self.inputs, **output}

    def cells(self) -> dict[str, object]:
        """Return the best answer in columns of ``CELLS``."""
        record = self.record()
        if self.prediction and self.prediction.answers:
            record |= vars(self.prediction.answers[0])
        return {name: record[name] for name in CELLS if name in record}


def predict_table(
    model: LoadedModel, table: Path, *, top: int = 5, batch_size: int = 32, num_workers: int = 0
) -> Iterator[TablePrediction]:
    """Yield a prediction for each row of a csv, tsv, json, jsonl or parquet table, in order, with a progress bar.

    Columns have the usual names, such as "image" and "text" or "question"; a second image is in "image_2". Paths of
    images are relative to the table; parquet may hold the bytes. ``num_workers`` threads read images (0: one per
    processor). Raises DualfuseError for a table without rows or without such a column; a row that cannot be used has a
    ``problem``.
    """
    total = sum(1 for _ in read_rows(table))
    yield from track(_predictions(model, table, top, batch_size, num_workers), total=total, what="rows")


def _predictions(
    model: LoadedModel, table: Path, top: int, batch_size: int, num_workers: int
) -> Iterator[TablePrediction]:
    read = partial(_read, model, _row_reader(table))
    rows = (row for _, row in parallel_map(read, read_rows(table), num_workers))
    while chunk := list(islice(rows, batch_size)):
        usable = [row.value for row in chunk if not row.problem]
        with torch.inference_mode():
            predictions = iter(model.task.predict(usable, model.processor, top) if usable else ())
        for row in chunk:
            yield TablePrediction(row.number, row.inputs, None if row.problem else next(predictions), row.problem)


@contextmanager
def table_writer(path: Path) -> Iterator[Callable[[TablePrediction], object]]:
    """Open ``path`` (.jsonl or .csv) for predictions; the file appears when all are written."""
    if path.suffix not in (".jsonl", ".csv"):
        raise DualfuseError(f"{path} should end in .jsonl, for all answers of each row, or .csv, for the best one")
    with atomic_write(path) as partial_path, partial_path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            file.write(csv_line(CELLS))
            yield lambda answer: file.write(csv_line(map(answer.cells().get, CELLS)))
        else:
            yield lambda answer: file.write(f"{json_line(answer.record())}\n")


RowInputs = tuple[dict[str, object], Callable[[], Sample]]
"""The inputs that a row names, and a function that reads them."""


def _row_reader(table: Path) -> Callable[[TableRow], RowInputs]:
    """Return a reader of rows; the columns are those of the first readable row."""
    first = next((row.cells for row in read_rows(table) if not row.problem), None)
    if first is None:
        raise DualfuseError(
            f"{table} holds no row that can be read; a table has a line of column names and lines below"
        )
    columns = {name.strip().lower(): name for name in first}
    texts = [columns[name] for name in ("question", *TEXT_COLUMNS) if name in columns]
    images = [columns[name] for name in IMAGE_COLUMNS if name in columns][:1]
    if not (texts or images):
        raise DualfuseError(f"{table} has no column called image, text or question; it has {', '.join(first)}")
    images += [columns[SECOND]] if SECOND in columns else []
    return partial(_row_inputs, ImageFinder(table.parent), "".join(texts[:1]), tuple(images), columns.get("id", ""))


def _row_inputs(find: ImageFinder, text: str, images: tuple[str, ...], name: str, row: TableRow) -> RowInputs:
    words = "\n".join(cell_texts(row.get(text)))
    cells = [row.get(column) for column in images]
    inputs: dict[str, object] = {"id": row[name]} if name in row else {}
    inputs |= {"image": cells[0]} if cells and isinstance(cells[0], str) else {}
    return inputs | {"text": words}, partial(_sample, find, words, cells)


def _sample(find: ImageFinder, text: str, cells: list[object]) -> Sample:
    first, *others = [_image(cell, find) for cell in cells if cell] or [b""]
    return Sample("row", first, (text,) if text.strip() else (), other_images=tuple(others))


def _image(cell: object, find: ImageFinder) -> bytes:
    image = cell_image(cell)
    return find(image).read() if isinstance(image, str) else image


@dataclass(frozen=True)
class _Row:
    """One row: its number and inputs, and what ``Task.read_input`` made of them, or why it cannot be used."""

    number: int
    inputs: Mapping[str, object]
    value: Any = None  # Any: an input of the task
    problem: str = ""


def _read(model: LoadedModel, read: Callable[[TableRow], RowInputs], row: Row) -> _Row:
    number = row.number
    if row.problem:
        return _Row(number, {}, problem=f"the row cannot be read: {row.problem}")
    inputs: dict[str, object] = {}
    try:
        inputs, sample = read(row.cells)
        return _Row(number, inputs, model.task.read_input(sample(), model.processor))
    except BrokenSample as error:
        return _Row(number, inputs, problem=error.reason)
    except OSError as error:
        return _Row(number, inputs, problem=f"its image cannot be read: {error.strerror or error}")
    except ValueError as error:
        return _Row(number, inputs, problem=str(error))
