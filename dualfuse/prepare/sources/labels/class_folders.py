"""Folders of classes, as in ImageNet: FOLDER/CLASS/*, or FOLDER/train/CLASS/*, ..."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from dualfuse.data.split import is_split_name, split_name
from dualfuse.data.text.decode import read_lines
from dualfuse.errors import DualfuseError
from dualfuse.io import listing
from dualfuse.prepare.sources.label_names import LABELS_FILE, parse_label
from dualfuse.prepare.sources.pairs import folder
from dualfuse.prepare.sources.source import Item, Source

NAME = re.compile(r"([^\t]+)\t\s*(.+)|([^\s,]+)[\s,]\s*(.+)")


def load(path: Path, class_names: Path | None, encoding: str = "", exclude: Path | None = None) -> Source:
    """Return the images below ``path`` with the names of their classes as labels; texts beside them are kept.

    The class is the first folder below ``path``, or below train, val and test if all folders are splits.
    ``class_names`` is a file with a folder and its class per line: "n01440764 tench". The labels, sorted by folder, are
    written to labels.txt. Raises ``DualfuseError`` for a folder without a name.
    """
    skipped: dict[str, str] = {}
    images = folder.image_names(path, skipped, exclude)
    tops = {name.partition("/")[0] for name in images if "/" in name}
    has_splits = bool(tops) and all(map(is_split_name, tops))
    classes = sorted({folder_name for name in images if (folder_name := _class(name, has_splits))})
    if len(classes) < 2:
        raise DualfuseError(
            f"{path} has {len(classes)} folders of classes ({', '.join(classes)}); --label folder needs a sub-folder "
            "for each class, such as cat/1.jpg and dog/2.jpg, or train/cat/1.jpg and val/cat/2.jpg"
        )
    labels_of, remarks = _labels(classes, class_names, encoding)
    labels = "".join(f"{labels_of[name]}\n" for name in classes)
    items = chain(_items(folder.read(path, images, encoding), labels_of, has_splits), folder.unreadable(skipped))
    return Source(items, len(images), {LABELS_FILE: labels}, remarks)


def _items(images: Iterator[Item], labels_of: Mapping[str, str], has_splits: bool) -> Iterator[Item]:
    for item in images:
        split = split_name(item.name.partition("/")[0]) if has_splits and "/" in item.name else ""
        label = labels_of.get(_class(item.name, has_splits))
        if label is None:
            yield replace(item, split=split, problem=item.problem or "not in a folder of a class")
        else:
            yield replace(item, split=split, label=parse_label(label))


def _class(name: str, has_splits: bool) -> str:
    """Return the folder of the class of an image; empty if there is none."""
    parts = name.split("/")[int(has_splits) : -1]
    return parts[0] if parts else ""


def _labels(classes: Sequence[str], file: Path | None, encoding: str) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """Return the unique label of each folder, and remarks."""
    if file is None:
        return {name: name for name in classes}, ()
    names = {first: name.strip() for first, name in _lines(file, encoding)}
    if missing := [name for name in classes if name not in names]:
        raise DualfuseError(
            f"{file} has no names for {len(missing)} folders: {listing(missing, 3)}; each line should be a folder, a "
            'space, comma or tab, and the name of the class: "n01440764 tench"'
        )
    counts = Counter(names[name] for name in classes)
    labels = {name: names[name] if counts[names[name]] == 1 else f"{names[name]} ({name})" for name in classes}
    shared = sorted(name for name, count in counts.items() if count > 1)
    remark = f"several classes are called {', '.join(shared)}: their labels include the folder"
    return labels, (remark,) if shared else ()


def _lines(file: Path, encoding: str) -> Iterator[tuple[str, str]]:
    for line in read_lines(file, encoding):
        if match := NAME.fullmatch(line):
            yield (match[1], match[2]) if match[1] else (match[3], match[4])
