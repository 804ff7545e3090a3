"""A folder of images with ``.txt`` files of captions beside them; also the ``files`` output of img2dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath

from dualfuse.data.split import is_split_name, split_name
from dualfuse.data.text.captions import parse_texts
from dualfuse.errors import DualfuseError
from dualfuse.files import MAX_JSON, read_bounded, walk
from dualfuse.io import listing
from dualfuse.prepare.sources.source import IMAGE_SUFFIXES, Item, Slice, Source

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx")


def load(folder: Path, encoding: str = "", exclude: Path | None = None) -> Source:
    """Return the images below ``folder``, except those in ``exclude``; see ``read``.

    Sub-folders that cannot be listed are items with that problem. Remarks name the text files and tables that are not
    read, and the folders with the name of a split that are none.
    """
    skipped: dict[str, str] = {}
    files = {parent: names for parent, names in walk(folder, skipped, exclude)}
    names = sorted(_path(parent, name) for parent in files for name in files[parent] if is_image_name(name))
    lost = tuple(unreadable(skipped))
    return Source(
        chain(read(folder, names, encoding), lost), len(names) + len(lost), remarks=tuple(_remarks(files, names))
    )


def unreadable(skipped: Mapping[str, str]) -> Iterator[Item]:
    """Yield an item for each folder that ``walk`` could not list."""
    for name, reason in skipped.items():
        if reason.startswith("unreadable"):
            yield Item(name, b"", problem=reason)


def _remarks(files: Mapping[str, Sequence[str]], names: Sequence[str]) -> Iterator[str]:
    stems = {str(PurePosixPath(name).with_suffix("")) for name in names}
    paths = [_path(parent, name) for parent in files for name in files[parent]]
    texts = [path for path in paths if path.lower().endswith(".txt") and path[:-4] not in stems]
    if texts:
        yield f"{len(texts):,} text files are not read, because no image has the same name: {listing(texts, 3)}"
    tables = [path for path in paths if path.lower().endswith(TABLES) and path.rpartition(".")[0] not in stems]
    if tables:
        yield f"not read: {listing(tables, 5)}; to read a table, give it as SOURCE"
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    splits = sorted(filter(is_split_name, tops))
    if splits and len(splits) < len(tops):
        others = listing(sorted(f"in {top}" if top else f"beside {splits[0]}" for top in tops - set(splits)), 3)
        yield f"not splits, because there are also images {others}: {', '.join(splits)}"


def _path(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name


CAPTIONS = (".txt", ".caption")
"""Suffixes of the files of captions beside images, in any case."""


def read(folder: Path, names: Sequence[str], encoding: str = "") -> Iterator[Item]:
    """Yield the images called ``names`` (see ``image_names``) below ``folder``.

    The text file (NAME.txt, NAME.caption or NAME.jpg.txt) has one caption per line; a JSON object beside it, NAME.json,
    becomes the meta data. Sub-folders called train, val or test are splits, unless there are images in other
    sub-folders, too.
    """
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    has_splits = all(is_split_name(top) for top in tops)
    beside = lru_cache(maxsize=8)(_files)
    for name in names:
        path = folder / name
        item = Item(name, Slice(path), split=split_name(name.partition("/")[0]) if has_splits else "")
        try:
            texts, meta = _texts(path, beside(path.parent), encoding)
            yield replace(item, texts=texts, meta=meta)
        except (OSError, DualfuseError) as error:
            yield replace(item, problem="unreadable text beside the image", detail=str(error))


def image_names(folder: Path, skipped: dict[str, str] | None = None, exclude: Path | None = None) -> list[str]:
    """Return the sorted names, relative to ``folder``, of all images below it, without hidden files and ``exclude``.

    ``skipped`` receives the sub-folders that could not be listed; see :func:`dualfuse.files.walk`.
    """
    return sorted(
        _path(parent, name) for parent, names in walk(folder, skipped, exclude) for name in names if is_image_name(name)
    )


def is_image_name(name: str) -> bool:
    """Return whether ``name`` has the suffix of an image file and is not hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _texts(image: Path, beside: Mapping[str, str], encoding: str) -> tuple[tuple[str, ...], Mapping[str, object]]:
    """Return the captions and the meta data in the files beside an image."""
    names = [image.stem + ending for ending in CAPTIONS] + [f"{image.name}{ending}" for ending in CAPTIONS]
    files = {"txt": next(filter(None, (beside.get(name.lower()) for name in names)), None)}
    files["json"] = beside.get(f"{image.stem}.json".lower())
    parts = {kind: read_bounded(image.parent / name, MAX_JSON) for kind, name in files.items() if name}
    return parse_texts(parts, image.with_suffix(""), encoding)


def _files(folder: Path) -> Mapping[str, str]:
    """Return the files of captions and meta data in a folder, by their names in lower case."""
    endings = (*CAPTIONS, ".json")
    return {name.lower(): name for name in sorted(os.listdir(folder), reverse=True) if name.lower().endswith(endings)}
