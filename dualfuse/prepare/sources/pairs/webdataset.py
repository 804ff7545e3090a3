"""Existing tar shards in the WebDataset layout, such as the output of img2dataset."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from dualfuse.data.shards.shards import parse_class
from dualfuse.data.split import split_in_name
from dualfuse.data.text.captions import captions_of
from dualfuse.io import MAX_JSON, open_regular, walk
from dualfuse.prepare.sources.pairs.folder import is_image_name, unreadable
from dualfuse.prepare.sources.source import Item, Slice

Members = dict[str, tarfile.TarInfo]  # by extension: "jpg", "txt", "json"


def read(path: Path, exclude: Path | None = None) -> Iterator[Item]:
    """Yield the samples of a tar, or of all tars below a folder except those in ``exclude``, in file order.

    The split is the one in the name of the tar (``train-00000.tar``) or of its folder (``train/00000.tar``). A member
    ``.cls``, as in ImageNet shards, is the label: a class number or name.
    """
    skipped: dict[str, str] = {}
    for tar in tar_files(path, skipped, exclude):
        folders = tar.relative_to(path).parts[:-1] if path.is_dir() else ()
        split = split_in_name(tar.stem) or next(filter(None, map(split_in_name, folders)), "")
        name = "/".join((*folders, tar.stem))
        yield from _read_tar(tar, name, split)
    yield from unreadable(skipped)


def tar_files(path: Path, skipped: dict[str, str] | None = None, exclude: Path | None = None) -> tuple[Path, ...]:
    """Return the tar at ``path``, or all tars below it, sorted by name; see :func:`dualfuse.io.walk`."""
    if path.is_file():
        return (path,)
    files = (path / parent / name for parent, names in walk(path, skipped, exclude) for name in names)
    return tuple(sorted(file for file in files if file.suffix.lower() == ".tar"))


def _read_tar(tar: Path, name: str, split: str) -> Iterator[Item]:
    try:
        with open_regular(tar) as file, tarfile.open(fileobj=file) as archive:
            for key, members in _samples(archive):
                member = next((info for extension, info in members.items() if is_image_name(f"x.{extension}")), None)
                image = Slice(tar, member.offset_data, member.size) if member else b""
                meta = _meta(archive, members.get("json"))
                texts = _texts(archive, members.get("txt")) or captions_of(meta)
                label = parse_class(_bytes(archive, members.get("cls")).decode(errors="replace"))
                labels = {} if label == "" else {"label": label}
                yield Item(f"{name}/{key}", image, texts, split, meta, label=labels)
            # tarfile stops at a damaged header; a complete tar ends with a block of zeros
            is_complete = Slice(tar, archive.offset, tarfile.BLOCKSIZE).read() == bytes(tarfile.BLOCKSIZE)
    except Exception:  # TarError, or any other error of a malicious header or damaged compression
        is_complete = False
    if not is_complete:
        yield Item(name, b"", split=split, problem="unreadable tar from here on")


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, Members]]:
    """Yield the key and the members of each sample: adjacent members with equal names up to the first dot.

    Hard links are replaced by the files that they refer to.
    """
    key, members, files = "", Members(), Members()
    for info in archive:
        target = files.get(info.linkname) if info.islnk() else info
        if target is None or not target.isfile():
            continue
        files[info.name] = target
        folder, _, file = info.name.rpartition("/")
        stem, _, extension = file.partition(".")
        if members and key != f"{folder}/{stem}":
            yield key.lstrip("/"), members
            members = Members()
        key = f"{folder}/{stem}"
        members[extension.lower()] = target
    if members:
        yield key.lstrip("/"), members


def _bytes(archive: tarfile.TarFile, info: tarfile.TarInfo | None) -> bytes:
    if info is None or info.size > MAX_JSON:
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
