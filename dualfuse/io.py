"""What is written whole or not at all, and what is said when there is no room for it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

if TYPE_CHECKING:  # the command line asks says_full, and does not import torch for it
    from torch import Tensor

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a used-up quota, a file larger than is allowed."""


@contextmanager
def reserve(partial: Path, tensors: Iterable[Tensor], advice: str) -> Iterator[None]:
    """Let a block write the new folder ``partial``; where that fails nothing of it stays.

    ``tensors`` are what takes the room. Raises ``OSError`` that says what could not be written and why, how much room
    it needs and how much there is, and the ``advice``.
    """
    needed = size_of(tensors)
    try:
        partial.mkdir(parents=True)
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"{partial} could not be written ({error}); {describe_space(partial, needed)}. {advice}"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file that readers see as a whole or not at all; its folder is made. ``OSError`` names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def is_disk_full(error: Exception) -> bool:
    """Whether an error says that there is no room on a disk."""
    return isinstance(error, OSError) and error.errno in FULL


def size_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes that tensors take; of those that are shared out, as a whole."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def describe_space(path: Path, needed: int) -> str:
    """Return "it takes 1.2 GB, and 0.3 GB are free there"."""
    there = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    try:
        free = _size(shutil.disk_usage(there).free)
    except OSError:  # a file system that does not say
        free = "an unknown part of that"
    return f"it takes {_size(needed)}, and {free} are free there"


def _size(count: float) -> str:
    """Return a number of bytes as "1.2 GB"."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
