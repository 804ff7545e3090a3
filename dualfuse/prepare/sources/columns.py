"""Which column of a table holds the images, which the captions, which the split, which the labels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dualfuse.errors import DualfuseError

IMAGE_COLUMNS = (
    "image", "image_path", "filepath", "file_path", "filename", "file_name", "image_name", "file", "path", "img",
    "img_path", "image", "jpg", "jpeg", "png", "webp",
)  # fmt: skip
TEXT_COLUMNS = (
    "captions",
    "caption",
    "texts",
    "text",
    "title",
    "description",
    "alt",
    "alt_text",
    "sentence",
    "comment",
)
_NUMBERED = re.compile(r"(caption|text|sentence|description)[ _-]?\d+")
_URL_COLUMNS = ("url", "image_url", "img_url", "link")


@dataclass(frozen=True)
class Columns:
    """The columns that matter; an empty one is to be found by its usual names."""

    image: str = ""
    texts: tuple[str, ...] = ()
    split: str = ""
    label: str = ""
    """Never found by its name: only who asks for labels has rows that stay apart."""


def choose(names: Iterable[str], wanted: Columns, where: str) -> Columns:
    """Return the columns to read among ``names``: those wanted, else those with usual names.

    Raises ``DualfuseError`` if one is wanted that is not there, or if none has a usual name. A table need not have texts
    or a split.
    """
    plain = {name.strip().lower(): name for name in names}
    for name in filter(None, (wanted.image, *wanted.texts, wanted.split, wanted.label)):
        if name not in plain.values():
            raise DualfuseError(f"{where} has no column {name!r}; its columns are {', '.join(plain.values())}")
    return Columns(
        image=wanted.image or _image(plain, where),
        texts=wanted.texts or _texts(plain),
        split=wanted.split or plain.get("split", ""),
        label=wanted.label,
    )


def refuse_url(where: str) -> ValueError:
    """Return the error for a table that names images by their address in the network."""
    return ValueError(
        f"{where} names its images by URL, and dualfuse downloads none; fetch them first with img2dataset "
        "(https://github.com/rom1504/img2dataset) and prepare the folder that it writes"
    )


def _image(plain: dict[str, str], where: str) -> str:
    found = [name for name in IMAGE_COLUMNS if name in plain]
    if found:
        return plain[found[0]]
    if any(name in plain for name in _URL_COLUMNS):
        raise refuse_url(where)
    raise DualfuseError(
        f"none of the columns of {where} is known to hold images: {', '.join(plain.values())}; name it with --image "
        "(the first line of a csv or tsv file must name the columns)"
    )


def _texts(plain: dict[str, str]) -> tuple[str, ...]:
    numbered = [name for key, name in plain.items() if _NUMBERED.fullmatch(key)]
    usual = [plain[name] for name in TEXT_COLUMNS if name in plain]
    return tuple(numbered) or tuple(usual[:1])
