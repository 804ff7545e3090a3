"""Caption files in the format of COCO, such as ``captions_train2017.json``: a list of images and one of captions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualfuse.data.split import split_in_name
from dualfuse.files import MAX_TABLE, read_json
from dualfuse.prepare.sources.image_finder import ImageFinder, merge_images
from dualfuse.prepare.sources.source import Item, Source


def load(path: Path, images: Path | None) -> Source:
    """Return every image of the file at ``path`` (or of each ``captions_*.json`` in that folder) with its captions.

    ``images`` is the folder of the images, or the parent of ``train2017`` and ``val2017``; by default, these are
    searched beside the file and beside its folder, as COCO unpacks. Ids may be numbers or texts. Entries that are
    incomplete, and captions of images that are not in the file, are items with that problem.
    """
    files = caption_files(path) if path.is_dir() else (path,)
    items = tuple(item for file in files for item in merge_images(_read(file, images)))
    return Source(iter(items), len(items))


def caption_files(folder: Path) -> tuple[Path, ...]:
    """Return the ``captions_*.json`` of a folder, sorted by name."""
    return tuple(sorted(folder.glob("captions_*.json")))


def _read(path: Path, images: Path | None) -> Iterator[Item]:
    return caption_items(read_json(path, MAX_TABLE), path, images, path.stem.removeprefix("captions_"))  # train2017


def caption_items(
    content: Mapping[str, Any],  # Any: checked where used
    path: Path,
    images: Path | None,
    part: str,
    fields: Sequence[str] = (),
) -> Iterator[Item]:
    """Yield every image of ``content``, the file at ``path``, with its captions; ``part`` is the folder of the images.

    Texts among the ``fields`` of an image go into its meta.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    for number, entry in enumerate(content["annotations"]):
        match entry:
            case {"image_id": image, "caption": str(caption)}:
                texts[_id(image)].append(caption)
            case _:
                yield Item(f"{path.name}: annotation {number}", b"", problem="incomplete entry")
    folders = (images,) if images else (path.parent, path.parent.parent)
    entries = content["images"]
    names = (entry["file_name"] for entry in entries if _is_image(entry))
    find = ImageFinder(*(folder / part for folder in folders), *folders, names=lambda: names)
    for number, entry in enumerate(entries):
        if not _is_image(entry):
            yield Item(f"{path.name}: image {number}", b"", problem="incomplete entry")
            continue
        yield Item(
            name=f"{part}/{entry['file_name']}",
            image=find(entry["file_name"]),
            texts=tuple(texts.pop(_id(entry["id"]), ())),
            split=split_in_name(path.stem),
            meta={"image_id": entry["id"]} | {key: entry[key] for key in fields if isinstance(entry.get(key), str)},
        )
    for image, captions in texts.items():
        for _ in captions:
            yield Item(f"{path.name}: image_id {image}", b"", problem="caption of an image that is not in the file")


def _is_image(entry: object) -> bool:
    match entry:
        case {"id": str() | int() | float(), "file_name": str()}:
            return True
        case _:
            return False


def _id(value: object) -> str:
    """Return an id as text, so that 7, 7.0 and "7" are equal."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
