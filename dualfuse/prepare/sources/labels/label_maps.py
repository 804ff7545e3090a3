"""Images with label maps: ``images/…/NAME.jpg`` and ``annotations/…/NAME.png``, as in ADE20K.

ADE20K (ADEChallengeData2016) has ``images/training``, ``images/validation`` and the same two under ``annotations``;
sub-folders are optional. Names of classes are optional, too: ADE20K's ``objectInfo150.txt``, or ``labels.txt`` with one
per line.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath

from dualfuse.data.split import is_split_name, split_name
from dualfuse.data.text.decode import read_lines
from dualfuse.prepare.sources.pairs.folder import image_names, unreadable
from dualfuse.prepare.sources.source import Item, Slice, Source

IMAGES, LABEL_MAPS = "images", "annotations"
ADE20K_NAMES, NAMES = "objectInfo150.txt", "labels.txt"


def has_label_maps(source: Path) -> bool:
    """Return whether ``source`` is a folder of images and label maps; COCO's annotations are JSON files instead."""
    images, maps = source / IMAGES, source / LABEL_MAPS
    if not (images.is_dir() and maps.is_dir()) or any(maps.glob("*.json")):
        return False
    return any(path.suffix.lower() == ".png" for path in maps.rglob("*"))


def load(source: Path) -> Source:
    """Return each image with its label map as an item; sub-folders are splits if all have the name of a split.

    Images without a label map, and label maps without an image, are items with that problem.
    """
    skipped: dict[str, str] = {}
    images, maps = image_names(source / IMAGES, skipped), image_names(source / LABEL_MAPS, skipped)
    names = _class_names(source)
    remarks = (f"{NAMES}: {len(names)} names of classes, for --task.labels",) if names else ()
    files = {NAMES: "".join(f"{name}\n" for name in names)} if names else {}
    items = chain(_items(source, images, maps), unreadable(skipped))
    return Source(items, len(_stems(maps) | _stems(images)), files, remarks)


def _items(source: Path, images: list[str], maps: list[str]) -> Iterator[Item]:
    tops = {name.partition("/")[0] if "/" in name else "" for name in images}
    has_splits = all(is_split_name(top) for top in tops)
    available = {str(PurePosixPath(name).with_suffix("")): name for name in maps if name.lower().endswith(".png")}
    done = set[str]()
    for name in images:
        stem = str(PurePosixPath(name).with_suffix(""))
        label_map = available.get(stem, "")
        problem = "" if label_map else "missing label map"
        yield Item(
            name,
            Slice(source / IMAGES / name),
            split=split_name(name.partition("/")[0]) if has_splits else "",
            problem="another image of that name came before" if stem in done else problem,
            label_map=Slice(source / LABEL_MAPS / label_map) if label_map else b"",
        )
        done.add(stem)
    for name in maps:
        if str(PurePosixPath(name).with_suffix("")) not in done:
            yield Item(name, b"", problem="label map without an image")


def _stems(names: list[str]) -> set[str]:
    return {str(PurePosixPath(name).with_suffix("")) for name in names}


def _class_names(source: Path) -> tuple[str, ...]:
    """Return the names of the classes in the order of their numbers; empty without a file of names.

    Of ADE20K's synonyms the first is returned, or all if another class has the same first one.
    """
    if (source / NAMES).is_file():
        return tuple(read_lines(source / NAMES))
    if not (source / ADE20K_NAMES).is_file():
        return ()
    full = [row.split("\t")[-1].strip() for row in read_lines(source / ADE20K_NAMES)[1:]]
    first = [name.partition(",")[0].strip() for name in full]
    return tuple(short if first.count(short) == 1 else name for short, name in zip(first, full, strict=True))
