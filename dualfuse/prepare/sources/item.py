"""What a source gives: one picture that is not read yet, and what the source says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PICTURE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".jfif",
    ".avif",
)  # all that people would call pictures; what cannot be decoded is reported


@dataclass(frozen=True)
class Slice:
    """Some bytes of a file: a whole picture file, or one member of a tar."""

    path: Path
    offset: int = 0
    size: int = -1
    """How many bytes; -1: up to the end of the file."""

    def read(self) -> bytes:
        """Gives the bytes; raises ``OSError`` where there is no such file."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Item:
    """One picture of a source with its captions; cheap to make, as the picture is read later."""

    name: str
    """Names the picture within its source, such as ``val2014/COCO_val2014_000000391895.jpg``."""
    image: Slice | bytes
    """Where the picture lies, or the picture itself where the source cannot be read at any place (parquet)."""
    texts: tuple[str, ...] = ()
    split: str = ""
    """train, val, test and so on; empty: the source does not say."""
    meta: Mapping[str, object] = field(default_factory=dict)
    problem: str = ""
    """Why the source itself says that this one cannot be used; empty: as far as it knows it can."""


def captions_of(meta: Mapping[str, object]) -> tuple[str, ...]:
    """Gives the captions in a json that lies beside a picture: a list ``captions``, or a ``caption``, or a ``text``."""
    found = meta.get("captions") or meta.get("caption") or meta.get("text")
    candidates = found if isinstance(found, list) else [found]
    return tuple(text for text in candidates if isinstance(text, str) and text.strip())
