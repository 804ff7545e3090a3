"""Readers of csv, tsv, json, jsonl and parquet tables, row by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path

from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.io import MAX_TABLE, open_regular, read_json

TableRow = Mapping[str, object]


def read_rows(path: Path) -> Iterator[TableRow | None]:
    """Yield the rows of the table at ``path``, by its suffix; None for a line that cannot be read."""
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return json_lines(path)
        case ".json":
            return (row if isinstance(row, dict) else None for row in read_json(path, MAX_TABLE))
        case ".parquet":
            return _parquet(path)
        case _:
            return _separated(path)


def _separated(path: Path) -> Iterator[TableRow | None]:
    with TextIOWrapper(open_regular(path), "utf-8-sig", errors="replace", newline="") as file:
        header = file.readline()
        file.seek(0)
        delimiter = max(",\t;|", key=header.count)  # Flickr30k's results.csv is separated by "|"
        rows = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:  # a field of more than 128 KB, usually because of an unclosed quotation mark
                yield None
                continue
            is_complete = None not in row and None not in row.values()
            yield row if is_complete else None


def json_lines(path: Path) -> Iterator[TableRow | None]:
    """Yield the JSON objects of a file with one per line; None for other lines."""
    with open_regular(path) as file:
        for line in filter(None, map(bytes.strip, file)):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield row if isinstance(row, dict) else None


def _parquet(path: Path) -> Iterator[TableRow]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(f"reading {path}", "arrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except Exception as error:  # pyarrow raises all kinds of errors for damaged files
        raise DualfuseError(f"{path} is not a Parquet file, or is damaged: {error}") from error
