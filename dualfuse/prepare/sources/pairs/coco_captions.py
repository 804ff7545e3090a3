"""Caption files in the format of COCO, such as ``captions_train2017.json``: a list of images and one of captions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dualfuse.data.split import split_in_name
from dualfuse.io import MAX_TABLE, read_json
from dualfuse.prepare.sources.image_finder import ImageFinder
from dualfuse.prepare.sources.source import Item


def read(path: Path, images: Path | None) -> Iterator[Item]:
    """Yield every image of the file at ``path`` (or of each ``captions_*.json`` in that folder) with its captions.

    ``images`` is the folder of the images, or the parent of ``train2017`` and ``val2017``; by default, these are
    searched beside the file and beside its folder, as COCO unpacks.
    """
    for file in caption_files(path) if path.is_dir() else (path,):
        yield from _read_one(file, images)


def caption_files(folder: Path) -> tuple[Path, ...]:
    """Return the ``captions_*.json`` of a folder, sorted by name."""
    return tuple(sorted(folder.glob("captions_*.json")))


def _read_one(path: Path, images: Path | None) -> Iterator[Item]:
    content: Mapping[str, Any] = read_json(path, MAX_TABLE)  # Any: checked where used
    texts: dict[object, list[str]] = defaultdict(list)
    for annotation in content["annotations"]:
        texts[annotation["image_id"]].append(annotation["caption"])
    part = path.stem.removeprefix("captions_")  # train2017
    folders = (images,) if images else (path.parent, path.parent.parent)
    find = ImageFinder(*(folder / part for folder in folders), *folders)
    for entry in content["images"]:
        yield Item(
            name=f"{part}/{entry['file_name']}",
            image=find(entry["file_name"]),
            texts=tuple(texts[entry["id"]]),
            split=split_in_name(path.stem),
            meta={"image_id": entry["id"]},
        )
