"""NoCaps as published: ``nocaps_val_4500_captions.json``, ``nocaps_test_image_info.json``, and their images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dualfuse.data.split import split_in_name
from dualfuse.files import MAX_TABLE, read_json
from dualfuse.prepare.sources.image_finder import ImageFinder
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
    content: Mapping[str, Any] = read_json(path, MAX_TABLE)  # Any: checked where used
    captions: dict[object, list[str]] = defaultdict(list)
    for number, entry in enumerate(content.get("annotations", ())):
        match entry:
            case {"image_id": int(image), "caption": str(caption)}:
                captions[image].append(caption)
            case _:
                yield Item(f"{path.name}: annotation {number}", b"", problem="incomplete entry")
    split = split_in_name(path.stem)
    folders = (images,) if images else (path.parent, path.parent.parent)
    find = ImageFinder(*(folder / split for folder in folders), *folders)
    for number, entry in enumerate(content["images"]):
        match entry:
            case {"id": int(image), "file_name": str(name)}:
                meta = {"image_id": image} | {key: entry[key] for key in ("domain",) if isinstance(entry.get(key), str)}
                yield Item(f"{split}/{name}", find(name), tuple(captions.pop(image, ())), split, meta)
            case _:
                yield Item(f"{path.name}: image {number}", b"", problem="incomplete entry")
    for image, texts in captions.items():
        for _ in texts:
            yield Item(f"{path.name}: image_id {image}", b"", problem="caption of an image that is not in the file")
