"""The columns of a table with images, captions, splits and labels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dualfuse.errors import DualfuseError

IMAGE_COLUMNS = (
    "image", "image_path", "filepath", "file_path", "filename", "file_name", "image_name", "file", "path", "img",
    "img_path", "picture", "jpg", "jpeg", "png", "webp",
)  # fmt: skip
TEXT_COLUMNS = (
    "captions", "caption", "texts", "text", "title", "description", "alt", "alt_text", "sentence", "comment",
)  # fmt: skip
_NUMBERED = re.compile(r"(caption|text|sentence|description)[ _-]?\d+")
_URL_COLUMNS = ("url", "image_url", "img_url", "link")


@dataclass(frozen=True)
class Columns:
    """Names of columns; empty ones are recognized by their usual names."""

    image: str = ""
    texts: tuple[str, ...] = ()
    split: str = ""
    label: str = ""
    """Never recognized by name: with it, each row is an item of its own."""
    keep: tuple[str, ...] = ()
    """Columns that identify items; never recognized by name."""


def choose(names: Iterable[str], requested: Columns, table: str) -> Columns:
    """Return the columns to read among ``names``: the requested ones, else those with usual names.

    Raises ``DualfuseError`` if a requested column does not exist, or if no column of images is recognized. Texts and a
    split are optional.
    """
    plain = _plain(names, requested, table)
    return Columns(
        image=requested.image or _image(plain, table),
        texts=requested.texts or _texts(plain),
        split=requested.split or plain.get("split", ""),
        label=requested.label,
        keep=requested.keep,
    )


def choose_inputs(names: Iterable[str], requested: Columns, table: str) -> Columns:
    """Return the columns to predict from, as :func:`choose`; a column "question" comes before other texts.

    Raises ``DualfuseError`` if a requested column does not exist, and without any column of images or texts.
    """
    plain = _plain(names, requested, table)
    image = requested.image or next((plain[name] for name in IMAGE_COLUMNS if name in plain), "")
    texts = requested.texts or ((plain["question"],) if "question" in plain else _texts(plain))
    if not (image or texts):
        raise DualfuseError(
            f"{table} has no column called image, text or question; it has {', '.join(plain.values())}; give the names "
            "with --image-column and --text-columns"
        )
    return Columns(image, texts, keep=requested.keep)


def url_error(table: str) -> DualfuseError:
    """Return the error for a table that names images by their address in the network."""
    return DualfuseError(
        f"{table} has URLs of images, which dualfuse does not download; fetch them first with img2dataset "
        "(https://github.com/rom1504/img2dataset) and prepare the folder that it writes"
    )


def _plain(names: Iterable[str], requested: Columns, table: str) -> dict[str, str]:
    """Return the columns by their names in lower case; ``DualfuseError`` if a requested one does not exist."""
    plain: dict[str, str] = {}
    for name in names:
        if plain.setdefault(name.strip().lower(), name) != name:
            raise DualfuseError(f"{table} has the columns {plain[name.strip().lower()]!r} and {name!r}; rename one")
    for name in filter(None, (requested.image, *requested.texts, requested.split, requested.label, *requested.keep)):
        if name not in plain.values():
            raise DualfuseError(f"{table} has no column {name!r}; its columns are {', '.join(plain.values())}")
    return plain


def _image(plain: dict[str, str], table: str) -> str:
    if usual := [name for name in IMAGE_COLUMNS if name in plain]:
        return plain[usual[0]]
    if any(name in plain for name in _URL_COLUMNS):
        raise url_error(table)
    raise DualfuseError(
        f"no column of {table} is recognized as images: {', '.join(plain.values())}; give its name with --image (the "
        "first line of a csv or tsv file must name the columns)"
    )


def _texts(plain: dict[str, str]) -> tuple[str, ...]:
    numbered = [name for key, name in plain.items() if _NUMBERED.fullmatch(key)]
    usual = [plain[name] for name in TEXT_COLUMNS if name in plain]
    return tuple(numbered) or tuple(usual[:1])
