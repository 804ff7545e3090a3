"""Tar shards that exist already (WebDataset layout), above all those that img2dataset writes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from dualfuse.data.shards.shards import parse_class
from dualfuse.data.shards.tar_index import MAX_MEMBER
from dualfuse.data.split import split_in_name
from dualfuse.prepare.sources.item import Item, Slice, captions_of
from dualfuse.prepare.sources.pairs.folder import is_image_name

Members = dict[str, tarfile.TarInfo]  # by ending: "jpg", "txt", "json"


def read(path: Path) -> Iterator[Item]:
    """Return the samples of a tar, or of all tars below a folder, in the order in which they lie there.

    The split is taken from the name of the tar (``train-00000.tar``) or of its folder (``train/00000.tar``). A member
    ``.cls``, as ImageNet has in this layout, is the label: the number of a class, or its name.
    """
    for tar in tar_files(path):
        around = tar.relative_to(path).parts[:-1] if path.is_dir() else ()
        split = split_in_name(tar.stem) or next(filter(None, map(split_in_name, around)), "")
        name = "/".join((*around, tar.stem))
        yield from _read_tar(tar, name, split)


def tar_files(path: Path) -> tuple[Path, ...]:
    """Return the tar at ``path``, or all below it in the order of their names."""
    return (path,) if path.is_file() else tuple(sorted(path.rglob("*.tar")))


def _read_tar(tar: Path, name: str, split: str) -> Iterator[Item]:
    try:
        with tarfile.open(tar) as archive:
            for key, members in _samples(archive):
                pil_image = next((info for ending, info in members.items() if is_image_name(f"x.{ending}")), None)
                image = Slice(tar, pil_image.offset_data, pil_image.size) if pil_image else b""
                meta = _meta(archive, members.get("json"))
                texts = _texts(archive, members.get("txt")) or captions_of(meta)
                label = parse_class(_bytes(archive, members.get("cls")).decode(errors="replace"))
                truth = {} if label == "" else {"label": label}
                yield Item(f"{name}/{key}", image, texts, split, meta, label=truth)
            # tarfile takes a damaged header for the end, which is marked by a block of zeros
            is_whole = Slice(tar, archive.offset, tarfile.BLOCKSIZE).read() == bytes(tarfile.BLOCKSIZE)
    except Exception:  # TarError, or whatever a hostile header or damaged compression makes of it
        is_whole = False
    if not is_whole:
        yield Item(name, b"", split=split, problem="unreadable tar from here on")


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, Members]]:
    """Return the members that follow one another and are called the same up to the first dot of the file name.

    In the place of a hard link stands the file that it names.
    """
    key, members, files = "", Members(), Members()
    for info in archive:
        held = files.get(info.linkname) if info.islnk() else info
        if held is None or not held.isfile():
            continue
        files[info.name] = held
        folder, _, file = info.name.rpartition("/")
        stem, _, ending = file.partition(".")
        if members and key != f"{folder}/{stem}":
            yield key.lstrip("/"), members
            members = Members()
        key = f"{folder}/{stem}"
        members[ending.lower()] = held
    if members:
        yield key.lstrip("/"), members


def _bytes(archive: tarfile.TarFile, info: tarfile.TarInfo | None) -> bytes:
    if info is None or info.size > MAX_MEMBER:
        return b""
    file = archive.extractfile(info)
    return file.read() if file else b""


def _texts(archive: tarfile.TarFile, info: tarfile.TarInfo | None) -> tuple[str, ...]:
    lines = _bytes(archive, info).decode(errors="replace").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _meta(archive: tarfile.TarFile, info: tarfile.TarInfo | None) -> Mapping[str, object]:
    try:
        meta = json.loads(_bytes(archive, info) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return meta if isinstance(meta, dict) else {}
