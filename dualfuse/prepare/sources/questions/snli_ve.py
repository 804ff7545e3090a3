"""SNLI-VE, as published: ``snli_ve_train.jsonl``, ..., and the images of Flickr30k."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dualfuse.data.split import split_in_name
from dualfuse.prepare.sources.image_finder import FLICKR, ImageFinder, around
from dualfuse.prepare.sources.questions.common import DuplicateFinder, head, line_items
from dualfuse.prepare.sources.rows import TableRow
from dualfuse.prepare.sources.source import Item, Source

LABELS = ("contradiction", "neutral", "entailment")
IMAGE = ("Flickr30K_ID", "Flikr30kID")  # the second spelling is that of the first release


def pair_files(source: Path) -> tuple[Path, ...]:
    """Return the SNLI-VE file at ``source``, or those in that folder, the training set first."""
    files = source.glob("snli_ve_*.jsonl") if source.is_dir() else (source,)
    matches = (path for path in files if path.suffix == ".jsonl" and _is_snli_ve(head(path)))
    return tuple(sorted(matches, key=lambda path: ("train" not in path.stem, path.name)))


def _is_snli_ve(first: bytes) -> bool:
    line = first.partition(b"\n")[0]
    return b'"gold_label"' in line and b'"sentence2"' in line and any(f'"{name}"'.encode() in line for name in IMAGE)


def load(source: Path, images: Path | None) -> Source:
    """Return each hypothesis with its image as an item; dev is the split val.

    ``images`` is the folder of Flickr30k's images (``1000092795.jpg``); by default, they are searched in folders such
    as ``flickr30k-images`` around the JSON files.
    """
    files = pair_files(source)
    find = ImageFinder(*((images,) if images else around(files[0].parent, *FLICKR)))
    return Source(line_items(files, partial(_item, duplicates=DuplicateFinder(), find=find)))


def _item(row: TableRow, where: str, path: Path, *, duplicates: DuplicateFinder, find: ImageFinder) -> Item:
    image_name = next((str(row[name]).removesuffix(".jpg") for name in IMAGE if row.get(name)), "")
    number, text, label = row.get("pairID") or where, str(row.get("sentence2") or ""), row.get("gold_label")
    name = f"{image_name}.jpg" if image_name else where
    problem, note = duplicates.check(number, name, text)
    if label not in LABELS:
        problem = problem or f"its label is none of {', '.join(LABELS)}"
    image = find(name) if image_name else b""
    split = split_in_name(path.stem)
    return Item(name, image, (text,), split, {"id": number}, problem, label={"label": label}, note=note)
