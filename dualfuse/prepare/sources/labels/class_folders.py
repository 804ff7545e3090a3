"""A folder with a sub-folder for each class, as ImageNet comes: FOLDER/CLASS/*, or FOLDER/train/CLASS/* and so on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dualfuse.data.split import is_split_name, split_name
from dualfuse.errors import DualfuseError
from dualfuse.prepare.sources.item import Item
from dualfuse.prepare.sources.label_names import truth_of
from dualfuse.prepare.sources.pairs import folder
from dualfuse.prepare.sources.source import Source

LABELS = "labels.txt"
NAMED = re.compile(r"([^\t]+)\t\s*(.+)|([^\s,]+)[\s,]\s*(.+)")
SHOWN = 3


def load(path: Path, names: Path | None) -> Source:
    """Return the images below ``path``, each with the name of its class as label; texts beside them are kept.

    The class is the first folder below ``path``, or below train, val and test where all folders are such. ``names`` is
    a file that says in each line what a folder is called: "n01440764 tench". The labels, in the order of the folders'
    names, become labels.txt. ``DualfuseError`` for a folder without a name.
    """
    images = folder.image_names(path)
    tops = {name.partition("/")[0] for name in images if "/" in name}
    has_splits = bool(tops) and all(map(is_split_name, tops))
    classes = sorted({found for name in images if (found := _class(name, has_splits))})
    if len(classes) < 2:
        raise DualfuseError(
            f"{path} has {len(classes)} folders of classes ({', '.join(classes)}); --label folder needs a sub-folder "
            "for each class, such as cat/1.jpg and dog/2.jpg, or train/cat/1.jpg and val/cat/2.jpg"
        )
    called, remarks = _called(classes, names)
    labels = "".join(f"{called[name]}\n" for name in classes)
    items = _items(folder.read(path, images), called, has_splits)
    return Source(items, len(images), {LABELS: labels}, remarks)


def _items(found: Iterator[Item], called: Mapping[str, str], has_splits: bool) -> Iterator[Item]:
    for item in found:
        split = split_name(item.name.partition("/")[0]) if has_splits and "/" in item.name else ""
        label = called.get(_class(item.name, has_splits))
        if label is None:
            yield replace(item, split=split, problem=item.problem or "in no folder of a class")
        else:
            yield replace(item, split=split, label=truth_of(label))


def _class(name: str, has_splits: bool) -> str:
    """Return the folder that stands for the class of an image; empty: it lies in none."""
    parts = name.split("/")[int(has_splits) : -1]
    return parts[0] if parts else ""


def _called(classes: Sequence[str], file: Path | None) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """Return what each class is called, each by another name, and what is to remark."""
    if file is None:
        return {name: name for name in classes}, ()
    said = {first: name.strip() for first, name in _lines(file)}
    if missing := [name for name in classes if name not in said]:
        raise DualfuseError(
            f"{file} says of {len(missing)} folders not what they are called, such as {', '.join(missing[:SHOWN])}; "
            'each line should be the name of a folder, a space, comma or tab, and the name: "n01440764 tench"'
        )
    times = Counter(said[name] for name in classes)
    called = {name: said[name] if times[said[name]] == 1 else f"{said[name]} ({name})" for name in classes}
    twice = sorted(name for name, count in times.items() if count > 1)
    remark = f"several classes are called {', '.join(twice)}: their labels say the folder, too" if twice else ""
    return called, (remark,) if remark else ()


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text(encoding="utf-8-sig").splitlines():
        if match := NAMED.fullmatch(line.strip()):
            yield (match[1], match[2]) if match[1] else (match[3], match[4])
