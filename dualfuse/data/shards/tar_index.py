"""Where the samples of one tar file lie, and their bytes.

The layout is that of the webdataset package (and of img2dataset): the members of a sample stand side by side and share
their name up to the first dot of its file part. A tar file is walked once, header by header; where its members lie is
kept beside it as ``NAME.tar.index.npz``, and the tar itself is memory-mapped. No member is ever extracted by name.

A hard link is a member too: the bytes of the one it names, which came before it in the same tar. So questions about one
image share it. Links of any other kind, which may lead out of the tar, are none.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import tarfile
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dualfuse.data.sample import ChangedFile
from dualfuse.errors import DualfuseError
from dualfuse.io import atomic_write

MAX_MEMBER = 256 << 20  # bytes; a larger member is an accident, and would take the loader worker's memory with it
MAX_NAME = 4096  # characters; no file system knows longer paths
OPEN_TARS = 256  # mapped at once in one process: each holds a file descriptor, and 1024 of those is a usual limit
INDEX_FORMAT = 2
END = bytes(tarfile.BLOCKSIZE)  # a tar ends with blocks of zeros
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
NAME = re.compile(r"(?P<key>(?:.*/)?[^./]+)\.(?P<extension>[^/]*)", re.DOTALL)
NOT_A_SAMPLE = re.compile(r"__[^/]*__(?:$|/)")  # webdataset's own notes inside a shard


@dataclass(frozen=True, eq=False)
class TarIndex:
    """Where the members of one tar file lie, without their contents.

    ``names`` are the UTF-8 names of M members one after the other, ``name_ends`` (M,) where each ends, ``offsets`` and
    ``sizes`` (M,) in bytes; sample s of S has the members ``first[s]`` to ``first[s + 1]``. ``stamp`` is the format of
    the index and the size and time stamp of the tar it was made of.
    """

    path: Path
    stamp: np.ndarray
    names: np.ndarray
    name_ends: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    first: np.ndarray

    @staticmethod
    def of(path: Path) -> TarIndex:
        """Return the index kept beside ``path``; if there is none that fits, makes one and tries to keep it."""
        kept = path.with_name(path.name + ".index.npz")
        found = path.stat()
        stamp = np.array([INDEX_FORMAT, found.st_size, found.st_mtime_ns])
        try:
            with kept.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                index = TarIndex(path, **stored)
            if np.array_equal(index.stamp, stamp):
                return index
        except Exception:  # whatever has damaged a file that can be made again, it is made again
            pass
        index = TarIndex(path, stamp, **_walk(path))
        arrays = {name: value for name, value in vars(index).items() if name != "path"}
        with contextlib.suppress(OSError), atomic_write(kept) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)  # suppressed in a read-only folder, where every process makes its own index
        return index

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.first) - 1

    def key(self, number: int) -> str:
        """Return the key of a sample inside its tar."""
        return _split(self._name(int(self.first[number])))[0]

    def read(self, number: int, wanted: Container[str]) -> dict[str, bytes]:
        """Return the bytes of those members of a sample whose lower-case extension is ``wanted``, by extension.

        Raises DualfuseError for a sample with two members of one name, or with one larger than ``MAX_MEMBER``.
        """
        parts: dict[str, bytes] = {}
        seen: set[str] = set()
        for member in range(int(self.first[number]), int(self.first[number + 1])):
            extension = _split(self._name(member))[1]
            if extension in seen:
                raise DualfuseError(f"two members end in .{extension}")
            seen.add(extension)
            if extension in wanted:
                parts[extension] = self._bytes(member)
        return parts

    def digest(self) -> str:
        """Return what stands for names and sizes of all members; contents are not read."""
        content = blake2b(digest_size=8)
        for part in (self.names, self.name_ends, self.sizes, self.first):
            content.update(np.ascontiguousarray(part).data)
        return content.hexdigest()

    def _bytes(self, member: int) -> bytes:
        offset, size = int(self.offsets[member]), int(self.sizes[member])
        if size > MAX_MEMBER:
            raise DualfuseError(f"{self._name(member)} has {size:,} bytes; at most {MAX_MEMBER:,} are read")
        return mapped(self.path, int(self.stamp[1]), int(self.stamp[2]))[offset : offset + size]

    def _name(self, member: int) -> str:
        start = int(self.name_ends[member - 1]) if member else 0
        return self.names[start : int(self.name_ends[member])].tobytes().decode(errors="backslashreplace")


def _split(name: str) -> tuple[str, str]:
    """Split a member's name into the key of its sample and its extension; both empty if it belongs to none."""
    match = NAME.fullmatch(name)
    if match is None or NOT_A_SAMPLE.match(name):
        return "", ""
    return match["key"], match["extension"].lower()


def _walk(path: Path) -> dict[str, np.ndarray]:
    """Find all samples of a tar file from its headers: the arrays of a :class:`TarIndex`."""
    names: list[bytes] = []
    places: list[tuple[int, int]] = []
    first: dict[str, int] = {}
    last = ""
    for name, offset, size in _members(path):
        key, _ = _split(name)
        if not key:
            continue
        if key != last and key in first:
            raise DualfuseError(f"{path}: members of {key} stand in two places; write it anew with tar --sort=name")
        last = key
        first.setdefault(key, len(names))
        names.append(name.encode(errors="surrogateescape"))
        places.append((offset, size))
    offsets, sizes = np.array(places, np.int64).reshape(-1, 2).T
    return {
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        "offsets": offsets,
        "sizes": sizes,
        "first": np.array([*first.values(), len(names)], np.int64),
    }


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """List name, offset and size of all plain files and hard links; DualfuseError for anything but a whole tar."""
    with path.open("rb") as file:
        try:
            tar = tarfile.open(fileobj=file, mode="r:", errors="surrogateescape")  # noqa: SIM115 - file is closed
        except Exception as error:  # TarError, or whatever a hostile header makes tarfile raise
            file.seek(0)
            packed = COMPRESSED.get(file.read(2))
            reason = f"compressed with {packed}; unpack it" if packed else f"no tar file: {error}"
            raise DualfuseError(f"{path} is {reason}") from error
        yield from _headers(path, file, tar)


def _headers(path: Path, file: BinaryIO, tar: tarfile.TarFile) -> Iterator[tuple[str, int, int]]:
    """Follow the headers up to the block of zeros that ends a tar; tarfile itself would stop at a damaged one."""
    total, start = path.stat().st_size, 0
    files: dict[str, tuple[int, int]] = {}
    file.seek(0)
    while file.read(tarfile.BLOCKSIZE) != END:
        file.seek(start)
        try:
            member = tarfile.TarInfo.fromtarfile(tar)
        except Exception as error:  # HeaderError, or whatever a hostile header makes tarfile raise
            raise DualfuseError(f"{path} is truncated or damaged at byte {start:,} of {total:,}: {error}") from error
        if not start < tar.offset < total or member.size < 0 or len(member.name) > MAX_NAME:
            # leads back, or to where the tar ends without saying so
            said = f"{member.size:,} bytes in {member.name[:100]}"
            raise DualfuseError(f"{path} is truncated or damaged at byte {start:,} of {total:,}: {said}")
        start = file.seek(tar.offset)
        if member.isreg() and not member.issparse():
            files[member.name] = member.offset_data, member.size
        elif member.islnk() and member.linkname in files:
            files[member.name] = files[member.linkname]
        else:
            continue
        yield member.name, *files[member.name]


def mapped(path: Path, size: int, mtime_ns: int) -> mmap.mmap:
    """Return the bytes of a file; ``ChangedFile`` for one that is not as it was, by size and time stamp, or has gone.

    It is looked at every time: to read what was cut off from a mapped file would kill the process.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ChangedFile(f"{path} cannot be read any more: {error.strerror}; put it back and start again") from error
    if (found.st_size, found.st_mtime_ns) != (size, mtime_ns):
        raise ChangedFile(f"{path} has changed since it was opened; start again")
    return _opened(path, size, mtime_ns)


@lru_cache(maxsize=OPEN_TARS)
def _opened(path: Path, size: int, mtime_ns: int) -> mmap.mmap:
    """Map a file; size and time stamp tell one that was opened before from what has its name now."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
