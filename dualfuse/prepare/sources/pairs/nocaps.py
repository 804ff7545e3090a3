"""NoCaps as published: ``nocaps_val_4500_captions.json``, ``nocaps_test_image_info.json``, and their images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dualfuse.data.split import split_in_name
from dualfuse.files import MAX_TABLE, read_json
from dualfuse.prepare.sources.pairs.coco_captions import caption_items
from dualfuse.prepare.sources.source import Item, Source


def nocaps_files(source: Path) -> tuple[Path, ...]:
    """Return the file of NoCaps at ``source``, or those in that folder, sorted by name."""
    files = source.glob("nocaps_*.json") if source.is_dir() else (source,)
    return tuple(sorted(path for path in files if path.name.startswith("nocaps_") and path.suffix == ".json"))


def load(source: Path, images: Path | None) -> Source:
    """Return every image with its ten captions, of the test set without any, and its domain in the meta.

    ``images`` is the folder of the images, or the parent of ``val`` and ``test``; by default, these are searched beside
    the files.
    """
    items = tuple(item for path in nocaps_files(source) for item in _read(path, images))
    return Source(iter(items), len(items))


def _read(path: Path, images: Path | None) -> Iterator[Item]:
    content = {"annotations": (), **read_json(path, MAX_TABLE)}
    return caption_items(content, path, images, split_in_name(path.stem), fields=("domain",))
