"""Tables in csv, tsv, json, jsonl or parquet with an image and its text in each row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path

from dualfuse.data.split import is_split_name, split_in_name, split_name
from dualfuse.data.text.captions import texts_of
from dualfuse.errors import DualfuseError
from dualfuse.files import walk
from dualfuse.prepare.sources.cells import cell_image, cell_texts, is_url
from dualfuse.prepare.sources.columns import Columns, choose, url_error
from dualfuse.prepare.sources.image_finder import ImageFinder, file_key, merge_images
from dualfuse.prepare.sources.label_names import LabelledRows
from dualfuse.prepare.sources.rows import UNREADABLE, Row, TableRow, read_rows
from dualfuse.prepare.sources.source import Item, Slice, Source, keep_value

UNKNOWN_SPLIT = "its split is empty"


def load(
    path: Path, images: Path | None, requested: Columns, *, encoding: str = "", exclude: Path | None = None
) -> Source:
    """Return the images of the table at ``path``, or of all tables in that folder; see ``table_files``.

    Image names are relative to ``images``, or to the table; cells may contain the bytes. Rows about the same file are
    merged into one item with several captions, in the order of their first rows; with a label column, each text of each
    row is an item of its own. Without a split column, the split is in the name or the folder of the table, or in the
    first folder of all image names.
    """
    tables = (
        Table(table, path, images, partial(choose, requested=requested, table=str(table)), encoding)
        for table in table_files(path, exclude)
    )
    if not requested.label:
        return Source(merge_images(item for table in tables for item, _ in table.items()))
    return Source(_labelled(tables, requested.label))


def _labelled(tables: Iterable[Table], column: str) -> Iterator[Item]:
    """Yield the items of all rows with their labels; all rows about a file have its first name."""
    labelled, names = LabelledRows(), dict[object, str]()
    for table in tables:
        for item, row in table.items():
            if item.problem:
                yield item
                continue
            name = names.setdefault(file_key(item.image), item.name) if isinstance(item.image, Slice) else item.name
            yield from labelled.items(replace(item, name=name), row.get(column))


def table_files(path: Path, exclude: Path | None = None) -> tuple[Path, ...]:
    """Return the table at ``path``, or the tables below that folder: those called metadata, or else parquet files."""
    if not path.is_dir():
        return (path,)
    files = [path / parent / name for parent, names in walk(path, exclude=exclude) for name in names]
    metadata = [file for file in files if is_metadata(file.name)]
    return tuple(sorted(metadata or (file for file in files if file.suffix.lower() == ".parquet")))


def is_metadata(name: str) -> bool:
    """Return whether a file has the name of a table in Hugging Face's image folders."""
    return name.lower() in ("metadata.csv", "metadata.jsonl", "metadata.parquet")


class Table:
    """A table, the folders that its images are searched in, and the columns that are read."""

    def __init__(
        self, path: Path, source: Path, images: Path | None, choose: Callable[[Iterable[str]], Columns], encoding: str
    ) -> None:
        """``choose`` returns the columns to read among the names of all; ``source`` is the table or a folder above."""
        self.path, self._encoding = path, encoding
        self._folders = path.parent.relative_to(source).parts if source.is_dir() else ()
        """From the source to the table."""
        self._prefix = "".join(f"{folder}/" for folder in self._folders) if is_metadata(path.name) else ""
        """Precedes the names of images."""
        around = path.parent if is_metadata(path.name) or not source.is_dir() else source
        self.find = lru_cache(1 << 16)(
            ImageFinder(*((images,) if images else _image_folders(around)), names=self._names)
        )
        self._choose = lru_cache(256)(choose)

    def count(self) -> int:
        """Return the number of rows, by reading all of them."""
        return sum(1 for _ in read_rows(self.path, self._encoding))

    def items(self) -> Iterator[tuple[Item, TableRow]]:
        """Yield the item of every row, with its cells."""
        columns = Columns()
        for row in read_rows(self.path, self._encoding):
            where = f"{self.path.name}:{row.number}"
            if row.problem:
                yield Item(where, b"", problem=UNREADABLE, detail=row.problem), row.cells
                continue
            try:
                columns = self._choose(tuple(row.cells))
            except DualfuseError:  # a JSON object without some of the columns
                if columns == Columns():
                    raise
            yield self._item(where, row, columns), row.cells

    def _item(self, where: str, row: Row, columns: Columns) -> Item:
        cell = row.cells.get(columns.image)
        if is_url(cell) and row.number == 1:
            raise url_error(where)
        item = Item(where, b"", split=self._split(row, columns), meta=_meta(row, columns))
        item = replace(item, keep={name: keep_value(row.cells.get(name)) for name in columns.keep})
        if columns.split and not item.split:
            item = replace(item, note=UNKNOWN_SPLIT)
        try:
            image = cell_image(cell)
        except DualfuseError as error:
            return replace(item, problem="unreadable image", detail=str(error))
        try:
            texts = tuple(text for name in columns.texts for text in cell_texts(row.cells.get(name)))
        except DualfuseError as error:
            return replace(item, problem="unreadable caption", detail=str(error))
        if isinstance(image, bytes):
            name = cell.get("path") if isinstance(cell, dict) else ""  # the format of Hugging Face datasets
            return replace(item, name=f"{where}/{name or ''}".rstrip("/"), image=image, texts=texts)
        if not image:
            return replace(item, texts=texts)
        split = item.split or (split_name(_top(image)) if self._has_split_folders else "")
        return replace(item, name=self._prefix + image, image=self.find(image), texts=texts, split=split)

    def _split(self, row: Row, columns: Columns) -> str:
        """Return the split in a row, or in the name or folder of the table; empty: unknown."""
        cell = "".join(texts_of(row.cells.get(columns.split))[:1])
        if cell.strip():
            return split_name(cell)
        return next(filter(None, map(split_in_name, (self.path.stem, *reversed(self._folders)))), "")

    @cached_property
    def _has_split_folders(self) -> bool:
        """Whether the first folder of every image name is a split."""
        names = self._names()
        return is_split_name(_top(next(names, ""))) and all(is_split_name(_top(name)) for name in names)

    def _names(self) -> Iterator[str]:
        """Yield the names of images in all rows."""
        for row in read_rows(self.path, self._encoding):
            with suppress(DualfuseError):  # a row that is skipped
                name = "" if row.problem else cell_image(row.cells.get(self._choose(tuple(row.cells)).image))
                if name and isinstance(name, str):
                    yield name


def _top(name: str) -> str:
    """Return the first folder of a path; empty if there is none."""
    folder, slash, _ = name.replace("\\", "/").removeprefix("./").lstrip("/").partition("/")
    return folder if slash else ""


def _image_folders(folder: Path) -> tuple[Path, ...]:
    """Return ``folder``, and ``images`` in it if it exists."""
    return folder, *(folder / name for name in ("images", "Images") if (folder / name).is_dir())


def _meta(row: Row, columns: Columns) -> TableRow:
    used = (columns.image, columns.split, *columns.texts)
    return {name: cell for name, cell in row.cells.items() if name not in used and _is_value(cell)}


def _is_value(cell: object) -> bool:
    """Return whether a cell is a text or a finite number."""
    return math.isfinite(cell) if isinstance(cell, float) else isinstance(cell, str | int)
