"""Checksums of the files of a folder: written when it is complete, and compared when it is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.files import read_json, read_json_object
from dualfuse.io import write_json

FILE = "checksums.json"
THREADS = 4  # hashing releases the interpreter; each thread hashes about 1 GB per second


def sha256(path: Path) -> str:
    """Return the SHA-256 of the content of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file below ``folder`` to checksums.json."""
    write_json(folder / FILE, _checksums(folder, [path for path in folder.rglob("*") if path.is_file()]))


def update_checksum(folder: Path, name: str) -> None:
    """Record the SHA-256 of one file that was added or replaced on purpose; a folder without checksums stays so."""
    if (folder / FILE).is_file():
        stored = read_json_object(folder / FILE)
        write_json(folder / FILE, dict(sorted({**stored, **_checksums(folder, [folder / name])}.items())))


def differing_files(folder: Path, names: Sequence[str] = (), *, part: int = 0, of: int = 1) -> list[Path]:
    """Return the files of ``folder`` whose content is not that of checksums.json.

    ``names`` restricts the comparison to these paths below ``folder``. Of ``of`` processes that share the work, each
    compares another ``part``. Nothing is compared in a folder without checksums, as earlier versions wrote them, and
    missing files are not listed. Raises ``DualfuseError`` if checksums.json is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        stored = {str(name): str(value) for name, value in dict(read_json(path)).items()}
    except (OSError, ValueError, TypeError) as error:
        raise DualfuseError(f"{path} is damaged ({error}); delete it to load the other files unchecked") from error
    compared = sorted(name for name in stored if name in names or not names)[part::of]
    current = _checksums(folder, [folder / name for name in compared if (folder / name).is_file()])
    return [folder / name for name, value in current.items() if value != stored[name]]


def unwritten_files(folder: Path) -> list[str]:
    """Return the names of the files below ``folder`` that were added or changed since :func:`write_checksums`.

    A folder without checksums, as earlier versions wrote them, has none.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    changed = {file.relative_to(folder).as_posix() for file in differing_files(folder)}
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    return sorted(changed | (files - set(read_json_object(path)) - {FILE}))


def _checksums(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    with ThreadPoolExecutor(THREADS) as pool:
        names = (file.relative_to(folder).as_posix() for file in files)
        return dict(sorted(zip(names, pool.map(sha256, files), strict=True)))
