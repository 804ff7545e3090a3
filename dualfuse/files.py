"""Bounded reading of regular files, and listing of folders."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dualfuse.errors import DualfuseError
from dualfuse.io import format_size

MAX_IMAGE = 256 << 20
"""Bytes of an image file; more than ``MAX_PIXELS`` uncompressed pixels."""
MAX_JSON = 16 << 20
"""Bytes of a settings file, a report, an index or the JSON of one sample; parsed JSON takes up to 30 times as much."""
MAX_TABLE = 2 << 30
"""Bytes of a file that describes a data set and is read as a whole; the largest, of Visual Genome, has 1 GB."""
FILE_TYPES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: Path, limit: int | None = None) -> os.stat_result:
    """Return the status of a file without opening it.

    Raises ``DualfuseError`` unless it is a regular file of at most ``limit`` bytes (a folder, a pipe, a socket or a
    device is not), ``OSError`` if it does not exist.
    """
    status = os.stat(path)
    _check_status(path, status, limit)
    return status


def open_regular(path: Path, limit: int | None = None) -> BinaryIO:
    """Open a file for reading bytes; raises as :func:`check_regular` does, and never waits for a pipe or a device."""
    check_regular(path, limit)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_status(path, os.fstat(handle), limit)  # it may have been replaced meanwhile
    except BaseException:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes; raises as :func:`check_regular` does."""
    with open_regular(path, limit) as file:
        content = file.read(limit + 1)
    if len(content) > limit:  # a file that grows, or one of /proc, which has no size
        raise DualfuseError(f"{path} has more than {format_size(limit)}, the largest size that is read")
    return content


def read_json(path: Path, limit: int = MAX_JSON) -> Any:  # Any: whatever the file holds
    """Return the content of a JSON file; raises ``DualfuseError`` for other files, ``OSError`` if it is unreadable."""
    try:
        return json.loads(read_bounded(path, limit))
    except DualfuseError:
        raise
    except (ValueError, RecursionError) as error:  # RecursionError: JSON that is nested too deeply
        raise DualfuseError(f"{path} cannot be read as JSON: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:  # Any: as above
    """Return the object in a JSON file; raises ``DualfuseError`` if it is missing or holds anything else."""
    try:
        content = read_json(path)
    except OSError as error:
        raise DualfuseError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DualfuseError(f"{path} does not hold a JSON object")
    return content


def _check_status(path: Path, status: os.stat_result, limit: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = FILE_TYPES.get(stat.S_IFMT(status.st_mode), "a special file")
        raise DualfuseError(f"{path} is {kind}, not a regular file")
    if limit is not None and status.st_size > limit:
        raise DualfuseError(f"{path} has {format_size(status.st_size)}; at most {format_size(limit)} are read")


def walk(
    folder: Path, skipped: dict[str, str] | None = None, exclude: Path | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Yield ``folder`` and each folder below it: its relative POSIX path ("" first), and the sorted names of its files.

    Every folder is listed once, by its own path if it has one below ``folder``, otherwise by the first link to it; so
    loops of links end. Folders whose names begin with "." are not entered, nor is the folder ``exclude``. ``skipped``
    receives the relative paths of unreadable folders and of links to folders that are listed already, with the reason.
    Raises ``OSError`` if ``folder`` itself is unreadable.
    """
    skipped = {} if skipped is None else skipped
    listed: set[tuple[int, int]] = set()
    excluded = _identity(exclude) if exclude is not None and exclude.is_dir() else None
    folders, links = [""], list[str]()
    while folders or links:
        relative = folders.pop() if folders else links.pop(0)
        try:
            identity = _identity(folder / relative)
            if identity == excluded:
                continue
            if identity in listed:
                skipped[relative] = "a link to a folder that is listed already"
                continue
            listed.add(identity)
            with os.scandir(folder / relative) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if not relative:
                raise
            skipped[relative] = f"unreadable folder: {error.strerror}"
            continue
        prefix = f"{relative}/" if relative else ""
        inner = {entry.name: entry.is_symlink() for entry in entries if _is_folder(entry)}
        links += [prefix + name for name, is_link in inner.items() if is_link and name[0] != "."]
        folders += [prefix + name for name, is_link in reversed(inner.items()) if not is_link and name[0] != "."]
        yield relative, [entry.name for entry in entries if entry.name not in inner]


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder without permission
        return False
