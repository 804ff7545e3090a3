"""NLVR2, as published: JSON lines called ``train.json``, ``dev.json``, ``test1.json``, and images."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from dualfuse.data.split import split_name
from dualfuse.prepare.sources.image_finder import ImageFinder, around
from dualfuse.prepare.sources.questions.common import DuplicateFinder, head, line_items
from dualfuse.prepare.sources.rows import TableRow
from dualfuse.prepare.sources.source import Item, Source

NAME = re.compile(r"(\w+_)?(train|dev|test\d?)\.json")
LABELS = ("True", "False")


def sentence_files(source: Path) -> tuple[Path, ...]:
    """Return the NLVR2 file at ``source``, or those in that folder, the training set first."""
    files = source.iterdir() if source.is_dir() else (source,)
    matches = (path for path in files if NAME.fullmatch(path.name) and path.is_file() and _is_nlvr2(head(path)))
    return tuple(sorted(matches, key=lambda path: ("train" not in path.stem, path.name)))


def _is_nlvr2(first: bytes) -> bool:
    line = first.partition(b"\n")[0]
    return line.startswith(b"{") and b'"identifier"' in line and b'"sentence"' in line


def load(source: Path, images: Path | None) -> Source:
    """Return each sentence with its two images as an item; dev is the split val, test1 is called test1.

    ``images`` is the parent of ``train`` (or ``images/train``), ``dev`` and ``test1``; by default, they are searched
    around the JSON files.
    """
    files = sentence_files(source)
    folders = (images, images / "images") if images else around(files[0].parent, "images")
    return Source(line_items(files, partial(_item, duplicates=DuplicateFinder(), find=ImageFinder(*folders))))


def _item(row: TableRow, where: str, path: Path, *, duplicates: DuplicateFinder, find: ImageFinder) -> Item:
    identifier, sentence = str(row.get("identifier", "")), str(row.get("sentence", ""))
    first, second = (_image(row, identifier, number) for number in (0, 1))
    problem, note = duplicates.check(identifier, first, sentence)
    target = {"label": str(row["label"])} if row.get("label") is not None else {}
    if target and target["label"] not in LABELS:
        problem = problem or "its label is neither True nor False"
    meta, split = {"id": identifier}, split_name(path.stem)
    texts, others = (sentence,), (find(second),)
    return Item(first, find(first), texts, split, meta, problem, others, target, note or ("" if target else "no label"))


def _image(row: TableRow, identifier: str, number: int) -> str:
    """Return train/39/train-10171-0-img0.png or dev/dev-850-0-img0.png; identifiers end with a sentence number."""
    pair, part = identifier.rpartition("-")[0], identifier.partition("-")[0]
    folder = f"{part}/{row['directory']}" if part == "train" and "directory" in row else part
    return f"{folder}/{pair}-img{number}.png"
