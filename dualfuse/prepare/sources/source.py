"""Sources: their items, and files and remarks that belong to the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

from dualfuse.data.image.formats import check_suffix
from dualfuse.data.text.captions import texts_of
from dualfuse.errors import DualfuseError
from dualfuse.files import MAX_IMAGE, open_regular, read_bounded

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".jxl", ".tga", ".psd", ".svg",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw",
)  # fmt: skip
"""Suffixes of image files; files that cannot be decoded are skipped with the name of their format."""


@dataclass(frozen=True)
class Slice:
    """Some bytes of a file: a complete image file, or one member of a tar."""

    path: Path
    offset: int = 0
    size: int = -1
    """Number of bytes; -1: up to the end of the file."""
    remark: str = ""
    """How the file was found, or which files with similar names exist; empty: it has the name in the source."""

    def read(self) -> bytes:
        """Return the bytes; raises ``OSError`` for a missing file, ``DualfuseError`` for a pipe or too many bytes."""
        if self.size < 0:
            check_suffix(self.path)
            return read_bounded(self.path, MAX_IMAGE)[self.offset :]
        if self.size > MAX_IMAGE:
            raise DualfuseError(f"its image has {self.size:,} bytes; at most {MAX_IMAGE:,} are read")
        with open_regular(self.path) as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Item:
    """One image of a source with its captions, or with one question; the image is read later."""

    name: str
    """Name of the image in its source, such as ``val2014/COCO_val2014_000000391895.jpg``."""
    image: Slice | bytes
    """Location of the image, or its bytes if the source has no random access (parquet)."""
    texts: tuple[str, ...] = ()
    split: str = ""
    """train, val, test, ...; empty: unknown."""
    meta: Mapping[str, object] = field(default_factory=dict)
    problem: str = ""
    """Reason for which the reader of the source skips the item; empty: none."""
    other_images: tuple[Slice | bytes, ...] = ()
    """Further images that the text refers to."""
    label: Mapping[str, object] = field(default_factory=dict)
    """Target, stored in the meta: a ``label``, or ``answers``, or one certain ``answer``."""
    note: str = ""
    """Remark about an item that is kept; counted like a problem."""
    label_map: Slice | bytes = b""
    """PNG with a class number for each pixel; empty: none."""
    detail: str = ""
    """Details about the problem, for ``skipped.jsonl``."""

    keep: Mapping[str, object] = field(default_factory=dict)
    """The fields by which its owner knows the item."""

    @property
    def title(self) -> str:
        """The name, and the ``id`` of the meta, which distinguishes items that share an image, or the kept fields."""
        details = [str(self.meta["id"])] if "id" in self.meta and "id" not in self.keep else []
        details += [f"{name} {value}" for name, value in self.keep.items()]
        return f"{self.name} ({', '.join(details)})" if details else self.name


@dataclass(frozen=True)
class Source:
    """The content of one file or folder."""

    items: Iterator[Item]
    total: int | None = None
    """Number of items, if known in advance."""
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    """Text files that are written beside the shards, by name."""
    remarks: Sequence[str] = ()
    """Remarks about the source, such as missing parts; complete when all items have been yielded."""


@contextmanager
def foreign_errors(path: Path, kind: str) -> Iterator[None]:
    """Convert errors of a reader that are caused by a malformed file to ``DualfuseError`` with the path."""
    try:
        yield
    except (DualfuseError, OSError):  # these have a message for the user
        raise
    except Exception as error:
        raise DualfuseError(
            f"{path} has the format {kind!r}, but is damaged or another version of it ({type(error).__name__}: "
            f"{error}); download it again, or check that entry"
        ) from error


def kept_fields(items: Iterator[Item], names: Sequence[str], path: Path) -> Iterator[Item]:
    """Yield items with the fields ``names`` of their meta in ``keep``; those of tables have them already.

    Raises ``DualfuseError`` if the first usable item has none of these fields.
    """
    is_checked = not names
    for item in items:
        if not item.keep:
            item = replace(item, keep={name: keep_value(item.meta[name]) for name in names if name in item.meta})
        if not (is_checked or item.problem or item.keep):
            fields = ", ".join(item.meta) or "none"
            raise DualfuseError(
                f"{item.name} of {path} has no field called {', '.join(names)}; its fields are: {fields}"
            )
        is_checked |= not item.problem
        yield item


def keep_value(value: object) -> object:
    """Return a value for the JSON of a sample: a finite number, a text, a truth value, None, or a text of the rest."""
    is_number = isinstance(value, int) or (isinstance(value, float) and isfinite(value))
    return value if value is None or is_number or isinstance(value, str) else str(value)


def readable(items: Iterator[Item], path: Path, kind: str) -> Iterator[Item]:
    """Yield the items of a source with their texts as strings; see :func:`foreign_errors`."""
    with foreign_errors(path, kind):
        for item in items:
            if all(isinstance(text, str) for text in item.texts):
                yield item
                continue
            try:
                yield replace(item, texts=texts_of(item.texts))
            except DualfuseError as error:
                yield replace(item, texts=(), problem="unreadable caption", detail=str(error))
