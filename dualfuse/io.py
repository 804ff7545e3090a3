"""Atomic writing of files and folders, and the messages about full disks."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from safetensors import SafetensorError

if TYPE_CHECKING:  # the command line imports is_disk_full, which must not import torch
    from torch import Tensor

PARTIAL = ".partial"
"""Suffix of unfinished files and folders."""
UNFINISHED_FILE = r"\.[0-9a-f]{16}\.partial"
"""Pattern of what :func:`atomic_write` appends to the name of an unfinished file."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, an exhausted quota, a file above the size limit."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux


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


def silence(stream: TextIO) -> None:
    """Send the further output of a stream, whose reader or terminal has gone, nowhere, also that at exit."""
    with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


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
        free = format_size(shutil.disk_usage(existing).free)
    except OSError:  # a file system without this information
        free = "an unknown part of that"
    return f"it takes {format_size(needed)}, and {free} are free there"


def format_size(count: float) -> str:
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
