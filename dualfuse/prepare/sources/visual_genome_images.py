"""The images of Visual Genome: ``image_data.json`` and the folders ``VG_100K`` and ``VG_100K_2``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualfuse.prepare.sources.image_finder import ImageFinder, around
from dualfuse.prepare.sources.questions.common import read_json

FOLDERS = ("VG_100K", "VG_100K_2")
IMAGE_DATA = "image_data.json"


@dataclass(frozen=True)
class GenomeImage:
    """An entry of ``image_data.json``."""

    name: str
    """Such as VG_100K_2/1.jpg."""
    coco: int | None
    """Number of the same image in COCO."""


@dataclass(frozen=True)
class GenomeImages:
    """The images by their number, and where they are."""

    entries: Mapping[int, GenomeImage]
    find: ImageFinder
    has_data: bool
    """Whether ``image_data.json`` was there."""

    @staticmethod
    def of(path: Path, images: Path | None) -> GenomeImages:
        """Read the images beside the file ``path``; ``images`` as in the readers of that file."""
        folders = (images,) if images else around(path.parent, "images")
        find = ImageFinder(*folders, *(folder / name for folder in folders for name in FOLDERS))
        data = path.with_name(IMAGE_DATA)
        return GenomeImages(dict(read_json(data, _reduce)) if data.is_file() else {}, find, data.is_file())

    def __getitem__(self, number: int) -> GenomeImage:
        """Return the image of this number; without an entry it is found by its number alone."""
        return self.entries.get(number, GenomeImage(f"{number}.jpg", None))


def _reduce(entry: dict[str, Any]) -> object:  # Any: what a file holds
    name = "/".join(str(entry["url"]).split("/")[-2:])
    return entry["image_id"], GenomeImage(name, entry.get("coco_id"))
