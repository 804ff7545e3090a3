"""Bounded reading of regular files, listing of folders, atomic writing, and the messages about full disks."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError

from dualfuse.errors import DualfuseError

if TYPE_CHECKING:  # the command line imports is_disk_full, which must not import torch
    from torch import Tensor

PARTIAL = ".partial"
"""Suffix of unfinished files and folders."""
UNFINISHED_FILE = r"\.[0-9a-f]{16}\.partial"
"""Pattern of what :func:`atomic_write` appends to the name of an unfinished file."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, an exhausted quota, a file above the size limit."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
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
        raise DualfuseError(f"{path} has more than {_size(limit)}, the largest size that is read")
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
        raise DualfuseError(f"{path} has {_size(status.st_size)}; at most {_size(limit)} are read")


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


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; the file written there replaces ``path`` when the block succeeds.

    Readers see the old file or the complete new one, also when several processes write at the same time or one is
    killed. The file is synced to disk and gets the permissions of the umask, whatever wrote it. The parent folder is
    created. Raises ``OSError`` that names ``path``; after any exception the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield partial
        partial.chmod(mode)
        sync(partial)
        partial.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def remove_unfinished(folder: Path, name: str = "") -> None:
    """Remove what killed processes left of :func:`atomic_write` in ``folder``: of all files, or of the file ``name``.

    No other process may be writing there.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(re.escape(name) + (UNFINISHED_FILE if name else f".*{UNFINISHED_FILE}"), path.name):
            path.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add ``path`` to an ``OSError`` of an open file, which names none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def atomic_folder(path: Path, tensors: Iterable[Tensor] = (), advice: str = "") -> Iterator[Path]:
    """Yield a new empty folder beside ``path`` that replaces ``path`` when the block succeeds.

    Raises ``OSError`` with the space that ``tensors`` need, the space that is free, and ``advice``; after any
    exception the new folder is removed and ``path`` is unchanged.
    """
    partial = path.with_name(path.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    try:
        partial.mkdir(parents=True)
        yield partial
        replace_folder(partial, path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            space = describe_space(partial, size_of(tensors))
            raise OSError(f"{partial} could not be written ({error}); {space}. {advice}".rstrip()) from error
        raise


def replace_folder(partial: Path, path: Path) -> None:
    """Rename the complete folder ``partial`` to ``path``, replacing a folder that is there.

    First its files get the permissions of the umask and are synced to disk.
    """
    mode = partial.stat().st_mode & 0o666
    for file in filter(Path.is_file, partial.rglob("*")):
        file.chmod(mode)
        sync(file)
    sync(partial)
    if path.exists() and _exchange(partial, path):
        sync(path.parent)
        shutil.rmtree(partial, ignore_errors=True)
        return
    aside = _rename_aside(path)
    try:
        os.replace(partial, path)
    except OSError:
        if aside.exists():
            os.replace(aside, path)
        raise
    sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step, so that both names always exist; return False if the system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # not Linux
        return False
    return rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0


def remove_folder(path: Path) -> None:
    """Remove a folder; a process killed meanwhile leaves nothing called ``path``."""
    shutil.rmtree(_rename_aside(path), ignore_errors=True)


def _rename_aside(path: Path) -> Path:
    """Rename a folder, if it exists, because one that is half removed must not look complete; return the new path."""
    aside = path.with_name(f"{path.name}.old{PARTIAL}")
    shutil.rmtree(aside, ignore_errors=True)
    if path.exists():
        os.replace(path, aside)
    return aside


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically; see :func:`atomic_write`."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object, *, indent: int | None = 1, sort_keys: bool = False) -> None:
    """Write a JSON file atomically; see :func:`atomic_write`."""
    write_text(path, to_json(content, ascii_only=True, indent=indent, sort_keys=sort_keys) + "\n")


def to_json(content: object, *, ascii_only: bool = False, **options: Any) -> str:  # Any: as for json.dumps
    """Return ``content`` as JSON; NaN and infinite numbers, which JSON lacks, become null."""
    return json.dumps(_finite(content), ensure_ascii=ascii_only, allow_nan=False, **options)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {_finite(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_disk_full(error: Exception) -> bool:
    """Return whether an error means that there is no space on a disk."""
    return isinstance(error, OSError) and error.errno in DISK_FULL


def size_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors; for sharded tensors, of all shards together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def describe_space(path: Path, needed: int) -> str:
    """Return "it takes 1.2 GB, and 0.3 GB are free there"."""
    existing = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    try:
        free = _size(shutil.disk_usage(existing).free)
    except OSError:  # a file system without this information
        free = "an unknown part of that"
    return f"it takes {_size(needed)}, and {free} are free there"


def _size(count: float) -> str:
    """Return a number of bytes as "1.2 GB"."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def listing(names: Iterable[object], limit: int = 8, separator: str = ", ") -> str:
    """Return the first ``limit`` names and how many more there are: "a, b, and 3 more"; "nothing" without names."""
    texts = [str(name) for name in names]
    more = [f"and {len(texts) - limit:,} more"] if len(texts) > limit else []
    return separator.join(texts[:limit] + more) or "nothing"
