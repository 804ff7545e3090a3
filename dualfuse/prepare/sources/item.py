"""What a source gives: an image that is not read yet, or several, and what the source says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_SUFFIXES = (
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
)  # all that people would call images; what cannot be decoded is reported


@dataclass(frozen=True)
class Slice:
    """Some bytes of a file: a whole image file, or one member of a tar."""

    path: Path
    offset: int = 0
    size: int = -1
    """How many bytes; -1: up to the end of the file."""

    def read(self) -> bytes:
        """Return the bytes; raises ``OSError`` where there is no such file."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Item:
    """One image of a source with its captions, or with one question; cheap to make: the image is read later."""

    name: str
    """Names the image within its source, such as ``val2014/COCO_val2014_000000391895.jpg``."""
    image: Slice | bytes
    """Where the image lies, or the image itself where the source cannot be read at any place (parquet)."""
    texts: tuple[str, ...] = ()
    split: str = ""
    """train, val, test and so on; empty: the source does not say."""
    meta: Mapping[str, object] = field(default_factory=dict)
    problem: str = ""
    """Why the source itself says that this one cannot be used; empty: as far as it knows it can."""
    other_images: tuple[Slice | bytes, ...] = ()
    """Further images that the text speaks of."""
    label: Mapping[str, object] = field(default_factory=dict)
    """What is to be trained, for the meta: a ``label``, or ``answers``, or one certain ``answer``."""
    note: str = ""
    """What people should know of it although it is kept; counted like a problem."""
    label_map: Slice | bytes = b""
    """A PNG with the number of a class for each pixel; empty: there is none."""

    @property
    def title(self) -> str:
        """What it is called where several items share an image: the name, and the ``id`` of its meta."""
        return f"{self.name} ({self.meta['id']})" if "id" in self.meta else self.name


def captions_of(meta: Mapping[str, object]) -> tuple[str, ...]:
    """Return the captions in a json that lies beside an image: a list ``captions``, or a ``caption``, or a ``text``."""
    found = meta.get("captions") or meta.get("caption") or meta.get("text")
    candidates = found if isinstance(found, list) else [found]
    return tuple(text for text in candidates if isinstance(text, str) and text.strip())
