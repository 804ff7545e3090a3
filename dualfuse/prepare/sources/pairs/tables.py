"""Tables in csv, tsv, json, jsonl or parquet with an image and its text in each row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dualfuse.data.split import split_in_name, split_name
from dualfuse.prepare.sources.columns import Columns, choose, url_error
from dualfuse.prepare.sources.image_finder import ImageFinder
from dualfuse.prepare.sources.label_names import LabelledRows
from dualfuse.prepare.sources.rows import TableRow, read_rows
from dualfuse.prepare.sources.source import Item


@dataclass
class _Merged:
    """The rows about one image, merged."""

    meta: TableRow
    texts: list[str] = field(default_factory=list)


def read(path: Path, images: Path | None, requested: Columns) -> Iterator[Item]:
    """Yield the images of the table at ``path``, or of all parquet files in that folder.

    Image names are relative to ``images``, or to the table; parquet may contain the bytes. Rows about the same image
    are merged into one item with several captions, in the order of their first rows; with a label column, each text of
    each row is an item of its own.
    """
    find = ImageFinder(*((images,) if images else _image_folders(path)))
    labelled = LabelledRows()
    merged: dict[tuple[str, str], _Merged] = {}
    for table in sorted(path.rglob("*.parquet")) if path.is_dir() else (path,):
        columns: Columns | None = None
        for number, row in enumerate(read_rows(table), start=1):
            where = f"{table.name}:{number}"
            if row is None:
                yield Item(where, b"", problem="unreadable row")
                continue
            columns = columns or choose(row, requested, str(table))
            split, texts = _split(row, columns, table), _texts(row, columns)
            name, image = _image(row.get(columns.image), where)
            if columns.label:
                item = Item(name or where, image or (find(name) if name else b""), texts, split, _meta(row, columns))
                yield from labelled.items(item, row.get(columns.label))
            elif image or not name:
                yield Item(name or where, image, texts, split, _meta(row, columns))
            else:
                merged.setdefault((split, name), _Merged(_meta(row, columns))).texts.extend(texts)
    for (split, name), entry in merged.items():
        yield Item(name, find(name), tuple(entry.texts), split, entry.meta)


def _image_folders(path: Path) -> tuple[Path, ...]:
    """Return the table's folder, and ``images`` in it if it exists."""
    folder = path if path.is_dir() else path.parent
    return folder, *(folder / name for name in ("images", "Images") if (folder / name).is_dir())


def _image(cell: object, where: str) -> tuple[str, bytes]:
    """Return the name of an image, or its bytes; both are empty for an empty cell."""
    match cell:
        case bytes():
            return "", cell
        case {"bytes": bytes(data), **rest}:  # the format of Hugging Face datasets
            return f"{where}/{rest.get('path') or ''}".rstrip("/"), data
        case str() if cell.lower().startswith(("http://", "https://")):
            raise url_error(where)
        case str():
            return cell.strip(), b""
        case _:
            return "", b""


def _texts(row: TableRow, columns: Columns) -> tuple[str, ...]:
    return tuple(text for column in columns.texts for text in _cell_texts(row.get(column)) if text.strip())


def _cell_texts(cell: object) -> tuple[str, ...]:
    """Return the captions in a cell: a text, a list of texts, or a JSON list (csv files of Flickr30k)."""
    if isinstance(cell, str) and cell.startswith('["') and cell.endswith('"]'):
        try:
            cell = json.loads(cell)
        except ValueError:
            return (str(cell),)
    if isinstance(cell, list | tuple):
        return tuple(text for text in cell if isinstance(text, str))
    return (cell,) if isinstance(cell, str) else ()


def _split(row: TableRow, columns: Columns, table: Path) -> str:
    cell = row.get(columns.split) if columns.split else None
    return split_name(cell) if isinstance(cell, str) and cell.strip() else split_in_name(table.stem)


def _meta(row: TableRow, columns: Columns) -> TableRow:
    used = (columns.image, columns.split, *columns.texts)
    return {name: cell for name, cell in row.items() if name not in used and isinstance(cell, str | int | float)}
