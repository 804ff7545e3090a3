"""SNLI-VE as its owners publish it: ``snli_ve_train.jsonl`` and so on, and the images of Flickr30k."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dualfuse.data.split import split_in_name
from dualfuse.prepare.sources.image_finder import FLICKR, ImageFinder, around
from dualfuse.prepare.sources.item import Item
from dualfuse.prepare.sources.json_files import head
from dualfuse.prepare.sources.repeats import Repeats
from dualfuse.prepare.sources.rows import TableRow, json_lines
from dualfuse.prepare.sources.source import Source

LABELS = ("contradiction", "neutral", "entailment")
IMAGE = ("Flickr30K_ID", "Flikr30kID")  # the second spelling is that of the first release


def pair_files(source: Path) -> tuple[Path, ...]:
    """Return the file at ``source`` if it is SNLI-VE's, or those in that folder; the training set comes first."""
    files = source.glob("snli_ve_*.jsonl") if source.is_dir() else (source,)
    found = (path for path in files if path.suffix == ".jsonl" and _is_snli_ve(head(path)))
    return tuple(sorted(found, key=lambda path: ("train" not in path.stem, path.name)))


def _is_snli_ve(first: bytes) -> bool:
    line = first.partition(b"\n")[0]
    return b'"gold_label"' in line and b'"sentence2"' in line and any(f'"{name}"'.encode() in line for name in IMAGE)


def load(source: Path, images: Path | None) -> Source:
    """Return each hypothesis with its image as an item; dev is the split val.

    ``images`` is the folder of Flickr30k's images, ``1000092795.jpg`` and so on; without it they are looked for in
    folders called ``flickr30k-images`` and the like around the json files.
    """
    files = pair_files(source)
    find = ImageFinder(*((images,) if images else around(files[0].parent, *FLICKR)))
    return Source(_items(files, find))


def _items(files: tuple[Path, ...], find: ImageFinder) -> Iterator[Item]:
    repeats = Repeats()
    for path in files:
        for number, row in enumerate(json_lines(path), start=1):
            if row is None:
                yield Item(f"{path.name}:{number}", b"", problem="unreadable row")
            else:
                yield _item(row, f"{path.name}:{number}", split_in_name(path.stem), repeats, find)


def _item(row: TableRow, where: str, split: str, repeats: Repeats, find: ImageFinder) -> Item:
    image_name = next((str(row[name]).removesuffix(".jpg") for name in IMAGE if row.get(name)), "")
    number, text, label = row.get("pairID") or where, str(row.get("sentence2") or ""), row.get("gold_label")
    name = f"{image_name}.jpg" if image_name else where
    problem, note = repeats.look(number, name, text)
    if label not in LABELS:
        problem = problem or f"its label is none of {', '.join(LABELS)}"
    image = find(name) if image_name else b""
    return Item(name, image, (text,), split, {"id": number}, problem, label={"label": label}, note=note)
