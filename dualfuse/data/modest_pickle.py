"""A pickle, or an archive of torch, that asks for no more memory than its file has bytes: told before it is read."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

from dualfuse.errors import DualfuseError

PLACES = ("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET")
"""What refers to something that was read before, by its number: Python makes room for as many."""
LARGER = 10  # than the archive: what becomes of all its members


def check_pickle(file: BinaryIO) -> None:
    """Raise ``DualfuseError`` for numbers that no honest pickle of that length has, and for one that is cut off.

    Looks at the instructions up to the end of one pickle, runs none, and leaves ``file`` where it was.
    """
    start = file.tell()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file), start=1):
        if opcode.name in PLACES and isinstance(argument, int) and argument > number:
            raise DualfuseError(f"its instruction {number} refers to number {argument}")
    file.seek(start)


def check_archive(path: Path) -> None:
    """Raise ``DualfuseError`` for an archive whose members are far larger than it is.

    torch compresses nothing but the code and the notes of a TorchScript archive, which are small.
    """
    with zipfile.ZipFile(path) as archive:
        whole, size = sum(member.file_size for member in archive.infolist()), path.stat().st_size
    if whole > LARGER * size:
        raise DualfuseError(
            f"its {size:,} bytes are compressed and become {whole:,}, which torch never does to numbers"
        )
