"""Images with a class for each pixel: ``images/…/NAME.jpg`` and ``annotations/…/NAME.png``, as ADE20K comes.

ADE20K (ADEChallengeData2016) has ``images/training``, ``images/validation`` and the same two under ``annotations``;
data of your own need no sub-folders, or any. Names of classes are optional: ``objectInfo150.txt`` as ADE20K has it, or
``labels.txt``, one a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dualfuse.data.split import is_split_name, split_name
from dualfuse.prepare.sources.item import Item, Slice
from dualfuse.prepare.sources.pairs.folder import image_names
from dualfuse.prepare.sources.source import Source

IMAGES, LABEL_MAPS = "images", "annotations"
ADE20K_NAMES, NAMES = "objectInfo150.txt", "labels.txt"


def has_label_maps(source: Path) -> bool:
    """Whether ``source`` is a folder of images and label maps; COCO has a folder annotations too, with json files."""
    images, maps = source / IMAGES, source / LABEL_MAPS
    if not (images.is_dir() and maps.is_dir()) or any(maps.glob("*.json")):
        return False
    return next(maps.rglob("*.png"), None) is not None


def load(source: Path) -> Source:
    """Return each image with its label map as an item; sub-folders that are all called as splits are splits.

    Images without a label map, and label maps without an image, come as items with that problem.
    """
    images, maps = image_names(source / IMAGES), image_names(source / LABEL_MAPS)
    names = _class_names(source)
    remarks = (f"{NAMES}: {len(names)} names of classes; give them to --task.labels",) if names else ()
    files = {NAMES: "".join(f"{name}\n" for name in names)} if names else {}
    return Source(_items(source, images, maps), len(_stems(maps) | _stems(images)), files, remarks)


def _items(source: Path, images: list[str], maps: list[str]) -> Iterator[Item]:
    tops = {name.partition("/")[0] if "/" in name else "" for name in images}
    has_splits = all(is_split_name(top) for top in tops)
    there, done = {name for name in maps if name.endswith(".png")}, set[str]()
    for name in images:
        stem = str(PurePosixPath(name).with_suffix(""))
        label_map = f"{stem}.png"
        problem = "" if label_map in there else "missing label map"
        yield Item(
            name,
            Slice(source / IMAGES / name),
            split=split_name(name.partition("/")[0]) if has_splits else "",
            problem="another image of that name came before" if stem in done else problem,
            label_map=Slice(source / LABEL_MAPS / label_map),
        )
        done.add(stem)
    for name in maps:
        if str(PurePosixPath(name).with_suffix("")) not in done:
            yield Item(name, b"", problem="label map without an image")


def _stems(names: list[str]) -> set[str]:
    return {str(PurePosixPath(name).with_suffix("")) for name in names}


def _class_names(source: Path) -> tuple[str, ...]:
    """Return the names of the classes in the order of their numbers, none where no file has them.

    Of the synonyms that ADE20K lists the first is taken, and all where another class has the same first.
    """
    if (source / NAMES).is_file():
        lines = (source / NAMES).read_text(encoding="utf-8-sig", errors="replace").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    if not (source / ADE20K_NAMES).is_file():
        return ()
    rows = (source / ADE20K_NAMES).read_text(encoding="utf-8-sig", errors="replace").splitlines()[1:]
    full = [row.split("\t")[-1].strip() for row in rows if row.strip()]
    first = [name.partition(",")[0].strip() for name in full]
    return tuple(short if first.count(short) == 1 else name for short, name in zip(first, full, strict=True))
