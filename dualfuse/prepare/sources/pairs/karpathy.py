"""Karpathy's retrieval splits: ``dataset_coco.json``, ``dataset_flickr30k.json``, ``dataset_flickr8k.json``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dualfuse.data.split import split_name
from dualfuse.files import MAX_TABLE, read_json
from dualfuse.prepare.sources.image_finder import FLICKR, ImageFinder, around, merge_images
from dualfuse.prepare.sources.source import Item, Source


def load(path: Path, images: Path | None) -> Source:
    """Return every image of the file at ``path`` with all its sentences, in file order.

    ``images`` is the folder with ``val2014/COCO_val2014_000000391895.jpg`` or ``1000092795.jpg``; by default, images
    are searched around the file, also in folders such as ``flickr30k-images``. ``restval`` joins ``train``, as in the
    published recipes. Incomplete entries and sentences are items with that problem.
    """
    entries: Sequence[object] = read_json(path, MAX_TABLE)["images"]
    names = (_name(entry) for entry in entries if _is_image(entry))
    find = ImageFinder(*((images,) if images else around(path.parent, *FLICKR)), names=lambda: names)
    items = tuple(item for number, entry in enumerate(entries) for item in _items(entry, f"image {number}", find))
    return Source(merge_images(items), len(items))


def _items(entry: Any, where: str, find: ImageFinder) -> Iterator[Item]:  # Any: JSON
    if not _is_image(entry):
        yield Item(where, b"", problem="incomplete entry")
        return
    texts: list[str] = []
    for number, sentence in enumerate(entry["sentences"]):
        match sentence:
            case {"raw": str(text)}:
                texts.append(text)
            case _:
                yield Item(f"{where}: sentence {number}", b"", problem="incomplete entry")
    name = _name(entry)
    meta = {key: entry[key] for key in ("cocoid", "imgid", "sentids", "split") if key in entry}
    yield Item(name, find(name), tuple(texts), split_name(entry["split"]), meta)


def _name(entry: Any) -> str:  # Any: JSON
    return f"{entry['filepath']}/{entry['filename']}" if entry.get("filepath") else entry["filename"]


def _is_image(entry: object) -> bool:
    match entry:
        case {"filename": str(), "sentences": list(), "split": str()}:
            return True
        case _:
            return False
