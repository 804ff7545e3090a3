"""A folder of images with ``.txt`` files of captions beside them; also the ``files`` output of img2dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dualfuse.data.split import is_split_name, split_name
from dualfuse.data.text.captions import captions_of
from dualfuse.io import MAX_JSON, read_bounded, read_json, walk
from dualfuse.prepare.sources.source import IMAGE_SUFFIXES, Item, Slice


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


def image_names(folder: Path, skipped: dict[str, str] | None = None) -> list[str]:
    """Return the sorted names, relative to ``folder``, of all images below it, without hidden files.

    ``skipped`` receives the sub-folders that could not be listed; see :func:`dualfuse.io.walk`.
    """
    return sorted(
        f"{parent}/{name}" if parent else name
        for parent, files in walk(folder, skipped)
        for name in files
        if is_image_name(name)
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
