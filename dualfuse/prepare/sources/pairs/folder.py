"""A folder of images with ``.txt`` files of captions beside them; also the ``files`` output of img2dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath

from dualfuse.data.split import is_split_name, split_name
from dualfuse.data.text.captions import captions_of
from dualfuse.io import MAX_JSON, listing, read_bounded, read_json, walk
from dualfuse.prepare.sources.source import IMAGE_SUFFIXES, Item, Slice, Source

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".xlsx")


def load(folder: Path, exclude: Path | None = None) -> Source:
    """Return the images below ``folder``, except those in ``exclude``; see ``read``.

    Sub-folders that cannot be listed are items with that problem. Remarks name the text files and tables that are not
    read, and the folders with the name of a split that are none.
    """
    skipped: dict[str, str] = {}
    files = {parent: names for parent, names in walk(folder, skipped, exclude)}
    names = sorted(_path(parent, name) for parent in files for name in files[parent] if is_image_name(name))
    lost = tuple(unreadable(skipped))
    return Source(chain(read(folder, names), lost), len(names) + len(lost), remarks=tuple(_remarks(files, names)))


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


def read(folder: Path, names: Sequence[str]) -> Iterator[Item]:
    """Yield the images called ``names`` (see ``image_names``) below ``folder``.

    The text file has one caption per line; a ``.json`` object beside it becomes the meta data. Sub-folders called
    train, val or test are splits, unless there are images in other sub-folders, too.
    """
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    has_splits = all(is_split_name(top) for top in tops)
    for name in names:
        path = folder / name
        meta, problem = _meta(path.with_suffix(".json"))
        yield Item(
            name=name,
            image=Slice(path),
            texts=_captions(path.with_suffix(".txt")) or captions_of(meta),
            split=split_name(name.partition("/")[0]) if has_splits else "",
            meta=meta,
            problem=problem,
        )


def image_names(folder: Path, skipped: dict[str, str] | None = None, exclude: Path | None = None) -> list[str]:
    """Return the sorted names, relative to ``folder``, of all images below it, without hidden files and ``exclude``.

    ``skipped`` receives the sub-folders that could not be listed; see :func:`dualfuse.io.walk`.
    """
    return sorted(
        _path(parent, name) for parent, names in walk(folder, skipped, exclude) for name in names if is_image_name(name)
    )


def is_image_name(name: str) -> bool:
    """Return whether ``name`` has the suffix of an image file and is not hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _captions(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    lines = read_bounded(path, MAX_JSON).decode("utf-8-sig", errors="replace").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _meta(path: Path) -> tuple[Mapping[str, object], str]:
    if not path.is_file():
        return {}, ""
    try:
        meta = read_json(path)
    except ValueError:
        return {}, "unreadable json beside the image"
    return (meta, "") if isinstance(meta, dict) else ({}, "")
