"""Existing tar shards in the WebDataset layout, such as the output of img2dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from dualfuse.data.shards.shards import IMAGES, LABEL_MAP, OTHER_IMAGES, TEXTS, image_members, sample_texts
from dualfuse.data.shards.tar_index import TarIndex, is_tar_name
from dualfuse.data.split import split_in_name
from dualfuse.errors import DualfuseError
from dualfuse.files import walk
from dualfuse.io import listing
from dualfuse.prepare.sources.pairs.folder import unreadable
from dualfuse.prepare.sources.source import Item, Slice, Source

MEMBERS = frozenset((*IMAGES, *OTHER_IMAGES, LABEL_MAP, *TEXTS))


def load(path: Path, encoding: str = "", exclude: Path | None = None) -> Source:
    """Return the samples of a tar, or of all tars below a folder except those in ``exclude``, in file order.

    The split is the one in the name of the tar (``train-00000.tar``) or of its folder (``train/00000.tar``). Raises
    DualfuseError if a single tar cannot be read; among several, it is an item with a problem. A remark counts the
    members that are not read.
    """
    skipped: dict[str, str] = {}
    remarks = list[str]()
    items = _items(path, tar_files(path, skipped, exclude), encoding, remarks)
    return Source(chain(items, unreadable(skipped)), remarks=remarks)


def tar_files(path: Path, skipped: dict[str, str] | None = None, exclude: Path | None = None) -> tuple[Path, ...]:
    """Return the tar at ``path``, or all tars below it, sorted by name; see :func:`dualfuse.files.walk`."""
    if path.is_file():
        return (path,)
    files = (path / parent / name for parent, names in walk(path, skipped, exclude) for name in names)
    return tuple(sorted(file for file in files if is_tar_name(file.name)))


def _items(path: Path, tars: Sequence[Path], encoding: str, remarks: list[str]) -> Iterator[Item]:
    unread: Counter[str] = Counter()
    for tar in tars:
        folders = tar.relative_to(path).parts[:-1] if path.is_dir() else ()
        split = split_in_name(tar.stem) or next(filter(None, map(split_in_name, folders)), "")
        name = "/".join((*folders, tar.stem))
        try:
            index, damage = TarIndex.scan(tar)
        except (OSError, DualfuseError) as error:
            if len(tars) == 1:
                raise
            yield Item(name, b"", split=split, problem="unreadable tar", detail=str(error))
            continue
        for number in range(len(index)):
            yield _item(index, number, Item(f"{name}/{index.key(number)}", b"", split=split), encoding, unread)
        if damage:
            yield Item(name, b"", split=split, problem="unreadable tar from here on", detail=damage)
    endings = (f"{count:,} .{ending}" for ending, count in unread.most_common())
    remarks += [f"members of the tar files that are not read: {listing(endings)}"] if unread else []


def _item(index: TarIndex, number: int, item: Item, encoding: str, unread: Counter[str]) -> Item:
    """Return ``item`` with the members of a sample; count other members."""
    try:
        members = index.members(number)
        unread.update(members.keys() - MEMBERS)
        texts, meta = sample_texts(index.read(number, TEXTS), index.key(number), encoding)
    except DualfuseError as error:
        return replace(item, problem="unreadable sample", detail=str(error))
    label = {"label": meta["label"]} if "cls" in members and meta.get("label") != "" else {}
    item = replace(item, texts=texts, meta=meta, label=label)
    try:
        image, *others = (Slice(index.path, *members[name]) for name in image_members(members))
    except DualfuseError as error:
        return replace(item, problem="missing image", detail=str(error))
    label_map = Slice(index.path, *members[LABEL_MAP]) if LABEL_MAP in members else b""
    return replace(item, image=image, other_images=tuple(others), label_map=label_map)
