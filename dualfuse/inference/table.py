"""Predictions for every row of a table; rows that cannot be used are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from dualfuse.prepare.sources.cells import cell_image
from dualfuse.prepare.sources.columns import Columns, choose_inputs
from dualfuse.prepare.sources.pairs.tables import Table
from dualfuse.prepare.sources.rows import TableRow
from dualfuse.prepare.sources.source import Item, Slice
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
    """From the table: "text", "image" if the row names one, "id" if it has one, "keep" with the columns to keep."""
    prediction: Prediction | None
    problem: str = ""

    def record(self) -> dict[str, object]:
        """Return all fields as JSON values."""
        output = {"problem": self.problem} if self.prediction is None else self.prediction.record()
        return {"row": self.row, **self.inputs, **output}

    def cells(self) -> dict[str, object]:
        """Return the best answer in columns of ``CELLS``, and kept columns as "keep.NAME"."""
        record = self.record()
        if self.prediction and self.prediction.answers:
            record |= vars(self.prediction.answers[0])
        kept = record.get("keep")
        keep = {f"keep.{name}": value for name, value in kept.items()} if isinstance(kept, Mapping) else {}
        return {name: record[name] for name in CELLS if name in record} | keep


def input_table(path: Path, images: Path | None = None, requested: Columns | None = None, encoding: str = "") -> Table:
    """Open a csv, tsv, json, jsonl or parquet table, read as ``prepare`` reads it.

    Columns have the usual names, such as "image" and "text" or "question", or those in ``requested``. Names of images
    are relative to ``images``, or to the table; cells may hold the bytes.
    """
    choose = partial(choose_inputs, requested=requested or Columns(), table=str(path))
    return Table(path, path, images, choose, encoding)


def predict_table(
    model: LoadedModel, table: Path | Table, *, top: int = 5, batch_size: int = 32, num_workers: int = 0
) -> Iterator[TablePrediction]:
    """Yield a prediction for each row of a table (see :func:`input_table`), in order, with a progress bar.

    Several texts of a row are read as one; a second image is in the column "image_2". ``num_workers`` threads read
    images (0: one per processor). Raises DualfuseError for a table without rows or without columns of images and texts;
    a row that cannot be used has a ``problem``.
    """
    if batch_size < 1 or num_workers < 0:
        raise DualfuseError(f"batch_size is {batch_size} and num_workers {num_workers}; give at least 1 and 0")
    table = input_table(table) if isinstance(table, Path) else table
    if not (total := table.count()):
        raise DualfuseError(f"{table.path} has no rows; a table has a line of column names and lines below")
    read, items = partial(_read, model, table), enumerate(table.items(), start=1)
    rows = (row for _, row in parallel_map(read, items, num_workers))
    yield from track(_predictions(model, rows, top, batch_size), total=total, what="rows")


def _predictions(model: LoadedModel, rows: Iterator[_Row], top: int, batch_size: int) -> Iterator[TablePrediction]:
    while chunk := list(islice(rows, batch_size)):
        usable = [row.value for row in chunk if not row.problem]
        with torch.inference_mode():
            predictions = iter(model.task.predict(usable, model.processor, top) if usable else ())
        for row in chunk:
            yield TablePrediction(row.number, row.inputs, None if row.problem else next(predictions), row.problem)


@contextmanager
def table_writer(path: Path, keep: Sequence[str] = ()) -> Iterator[Callable[[TablePrediction], object]]:
    """Open ``path`` (.jsonl or .csv) for predictions; the file appears when all are written.

    ``keep`` names the kept columns, each of which a csv has as "keep.NAME".
    """
    columns = (*CELLS, *(f"keep.{name}" for name in keep))
    if path.suffix not in (".jsonl", ".csv"):
        raise DualfuseError(f"{path} should end in .jsonl, for all answers of each row, or .csv, for the best one")
    with atomic_write(path) as partial_path, partial_path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            file.write(csv_line(columns))
            yield lambda answer: file.write(csv_line(map(answer.cells().get, columns)))
        else:
            yield lambda answer: file.write(f"{json_line(answer.record())}\n")


@dataclass(frozen=True)
class _Row:
    """One row: its number and inputs, and what ``Task.read_input`` made of them, or why it cannot be used."""

    number: int
    inputs: Mapping[str, object]
    value: Any = None  # Any: an input of the task
    problem: str = ""


def _read(model: LoadedModel, table: Table, numbered: tuple[int, tuple[Item, TableRow]]) -> _Row:
    number, (item, cells) = numbered
    plain = {name.strip().lower(): cell for name, cell in cells.items()}
    inputs: dict[str, object] = {"id": plain["id"]} if "id" in plain else {}
    inputs |= {"image": item.name} if isinstance(item.image, Slice) else {}
    inputs |= {"text": "\n".join(item.texts)} | ({"keep": dict(item.keep)} if item.keep else {})
    if item.problem:
        return _Row(number, inputs, problem=": ".join(filter(None, (item.problem, item.detail))))
    try:
        second = cell_image(plain.get(SECOND))
        images = [item.image, table.find(second) if second and isinstance(second, str) else second]
        first, *others = [_bytes(image) for image in images if image and not isinstance(image, str)] or [b""]
        text = "\n".join(item.texts)
        sample = Sample("row", first, (text,) if text.strip() else (), other_images=tuple(others))
        return _Row(number, inputs, model.task.read_input(sample, model.processor))
    except BrokenSample as error:
        return _Row(number, inputs, problem=error.reason)
    except OSError as error:
        return _Row(number, inputs, problem=f"its image cannot be read: {error.strerror or error}")
    except ValueError as error:
        return _Row(number, inputs, problem=str(error))


def _bytes(image: Slice | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return image.read()
    except FileNotFoundError:
        raise DualfuseError(f"missing image: {image.remark or image.path}") from None
