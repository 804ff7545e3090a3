"""Tables in csv, tsv, json, jsonl or parquet with an image and its text in each row."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from dualfuse.data.split import split_in_name, split_name
from dualfuse.data.text.captions import texts_of
from dualfuse.errors import DualfuseError
from dualfuse.prepare.sources.cells import cell_image, cell_texts, is_url
from dualfuse.prepare.sources.columns import Columns, choose, url_error
from dualfuse.prepare.sources.image_finder import ImageFinder
from dualfuse.prepare.sources.label_names import LabelledRows
from dualfuse.prepare.sources.rows import UNREADABLE, Row, TableRow, read_rows
from dualfuse.prepare.sources.source import Item, Slice


@dataclass
class _Merged:
    """The rows about one image, merged."""

    name: str
    image: Slice
    meta: TableRow
    texts: list[str] = field(default_factory=list)


def read(path: Path, images: Path | None, requested: Columns, encoding: str = "") -> Iterator[Item]:
    """Yield the images of the table at ``path``, or of all parquet files in that folder.

    Image names are relative to ``images``, or to the table; cells may contain the bytes. Rows about the same image are
    merged into one item with several captions, in the order of their first rows; with a label column, each text of each
    row is an item of its own.
    """
    find = ImageFinder(*((images,) if images else _image_folders(path)))
    labelled = LabelledRows()
    merged: dict[tuple[str, str], _Merged] = {}
    for item, columns, row in _items(path, find, requested, encoding):
        if item.problem or not (columns.label or isinstance(item.image, Slice)):
            yield item
        elif columns.label:
            yield from labelled.items(item, row[columns.label])
        else:
            assert isinstance(item.image, Slice)
            first = _Merged(item.name, item.image, item.meta)
            merged.setdefault((item.split, os.path.normpath(item.image.path)), first).texts.extend(item.texts)
    for (split, _), entry in merged.items():
        yield Item(entry.name, entry.image, tuple(entry.texts), split, entry.meta)


def _items(
    path: Path, find: ImageFinder, requested: Columns, encoding: str
) -> Iterator[tuple[Item, Columns, TableRow]]:
    """Yield the item of every row, with its columns and its cells."""
    for table in sorted(path.rglob("*.parquet")) if path.is_dir() else (path,):
        columns = Columns()
        choose_once = lru_cache(maxsize=256)(lambda names, table=table: choose(names, requested, str(table)))
        for row in read_rows(table, encoding):
            where = f"{table.name}:{row.number}"
            if row.problem:
                yield Item(where, b"", problem=UNREADABLE, detail=row.problem), columns, row.cells
                continue
            try:
                columns = choose_once(tuple(row.cells))
            except DualfuseError:  # a JSON object without some of the columns
                if not columns.image:
                    raise
            yield _item(table, where, row, columns, find), columns, row.cells


def _item(table: Path, where: str, row: Row, columns: Columns, find: ImageFinder) -> Item:
    cell = row.cells.get(columns.image)
    if is_url(cell) and row.number == 1:
        raise url_error(where)
    split = "".join(texts_of(row.cells.get(columns.split))[:1])
    item = Item(where, b"", split=split_name(split) if split else split_in_name(table.stem), meta=_meta(row, columns))
    try:
        image = cell_image(cell)
    except DualfuseError as error:
        return replace(item, problem="unreadable image", detail=str(error))
    try:
        item = replace(item, texts=tuple(text for name in columns.texts for text in cell_texts(row.cells.get(name))))
    except DualfuseError as error:
        return replace(item, problem="unreadable caption", detail=str(error))
    if isinstance(image, str):
        return replace(item, name=image, image=find(image)) if image else item
    name = cell.get("path") if isinstance(cell, dict) else ""  # the format of Hugging Face datasets
    return replace(item, name=f"{where}/{name or ''}".rstrip("/"), image=image)


def _image_folders(path: Path) -> tuple[Path, ...]:
    """Return the table's folder, and ``images`` in it if it exists."""
    folder = path if path.is_dir() else path.parent
    return folder, *(folder / name for name in ("images", "Images") if (folder / name).is_dir())


def _meta(row: Row, columns: Columns) -> TableRow:
    used = (columns.image, columns.split, *columns.texts)
    return {name: cell for name, cell in row.cells.items() if name not in used and _is_value(cell)}


def _is_value(cell: object) -> bool:
    """Return whether a cell is a text or a finite number."""
    return math.isfinite(cell) if isinstance(cell, float) else isinstance(cell, str | int)
