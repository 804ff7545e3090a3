"""The index of one tar file, and reading its members.

The layout is that of the webdataset package (and of img2dataset): the members of a sample are adjacent and share their
name up to the first dot of the file name. A tar file is scanned once, header by header; the index is stored beside it
as ``NAME.tar.index.npz``, and the tar is memory-mapped. No member is extracted to disk.

A hard link is a member with the bytes of an earlier member of the same tar, so that questions about one image share it.
Links of other kinds, which may lead out of the tar, are ignored.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dualfuse.data.sample import ChangedFile
from dualfuse.errors import DualfuseError
from dualfuse.files import MAX_IMAGE, MAX_JSON, check_regular, open_regular
from dualfuse.io import atomic_write
from dualfuse.pickles import check_archive

MAX_MEMBER = MAX_IMAGE  # bytes; larger members are accidents, and would exhaust the memory of a loader process
MAX_INDEX = 1 << 30  # bytes; of a tar with ten million members or more
MAX_NAME = 4096  # characters; the limit of file systems
OPEN_TARS = 256  # mapped at the same time per process; each needs a file descriptor, of which the usual limit is 1024
INDEX_FORMAT = 2
END = bytes(tarfile.BLOCKSIZE)  # a tar ends with blocks of zeros
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
"""The programs that unpack a file, by its first bytes."""
NAME = re.compile(r"(?:\./+)*(?P<key>/*(?:(?:\.{1,2}|[^./][^/]*)/+)*[^./]+)\.(?P<extension>[^/]*)", re.DOTALL)
"""A member of a sample; names with a part that begins with a dot are hidden."""
NOT_A_SAMPLE = re.compile(r"__[^/]*__(?:$|/)|(?:.*/)?__MACOSX/")
"""Members that the webdataset package adds for itself, and those that macOS adds."""


@dataclass(frozen=True, eq=False)
class TarIndex:
    """Names, offsets and sizes of the members of one tar file.

    ``names`` are the concatenated UTF-8 names of M members, ``name_ends`` (M,) their ends, ``offsets`` and ``sizes``
    (M,) in bytes; sample s of S has the members ``first[s]`` to ``first[s + 1]``, exclusive. ``stamp`` is the format of
    the index, and the size and modification time of the tar. ``contents`` (32,) is :meth:`digest`, and ``captions``
    (S,) the number of captions of each sample; both are empty until they were computed.
    """

    path: Path
    stamp: np.ndarray
    names: np.ndarray
    name_ends: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    first: np.ndarray
    contents: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    captions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))

    @staticmethod
    def of(path: Path) -> TarIndex:
        """Load the index stored beside ``path``; if it is missing or outdated, create it and try to store it.

        Raises DualfuseError for a file that is not a tar, is incomplete, or whose samples are not adjacent.
        """
        loaded = TarIndex._load(path, _stamp(path))
        if loaded is not None:
            return loaded
        index, damage = TarIndex.scan(path)
        if damage:
            raise DualfuseError(damage)
        index._store()
        return index

    @staticmethod
    def _load(path: Path, stamp: np.ndarray) -> TarIndex | None:
        """Return the stored index with this stamp; None if it is missing, outdated or damaged in any way."""
        index_path = path.with_name(path.name + ".index.npz")
        try:
            check_archive(index_path)  # before its arrays are unpacked
            with open_regular(index_path, MAX_INDEX) as file, np.load(file, allow_pickle=False) as stored:
                index = TarIndex(path, **stored)
            return index if np.array_equal(index.stamp, stamp) else None
        except Exception:
            return None

    def _store(self) -> None:
        arrays = {name: value for name, value in vars(self).items() if name != "path"}
        index_path = self.path.with_name(self.path.name + ".index.npz")
        with contextlib.suppress(OSError), atomic_write(index_path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)  # suppressed in a read-only folder, where every process makes its own index

    def add(self, **computed: np.ndarray) -> None:
        """Add ``contents`` or ``captions`` to the stored index, if it can be written."""
        replace(self.stored(), **computed)._store()

    def stored(self) -> TarIndex:
        """Return the stored index of the same tar, to which another process may have added arrays."""
        loaded = TarIndex._load(self.path, self.stamp)
        return self if loaded is None else loaded

    @staticmethod
    def scan(path: Path) -> tuple[TarIndex, str]:
        """Return the index of a tar up to the first damage, and a description of it, or an empty string.

        Nothing is stored. Raises DualfuseError for a file that is not a tar, and if the members of a sample are not
        adjacent.
        """
        stamp = _stamp(path)
        arrays, damage = _scan(path)
        return TarIndex(path, stamp, **arrays), damage

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.first) - 1

    def key(self, number: int) -> str:
        """Return the key of a sample within this tar."""
        return _split(self._name(int(self.first[number])))[0]

    def members(self, number: int) -> dict[str, tuple[int, int]]:
        """Return the offset and the size of each member of a sample, by its extension in lower case.

        Raises DualfuseError for a sample with two members of one extension.
        """
        spans: dict[str, tuple[int, int]] = {}
        for member in range(int(self.first[number]), int(self.first[number + 1])):
            extension = _split(self._name(member))[1]
            if extension in spans:
                raise DualfuseError(f"two members end in .{extension}")
            spans[extension] = int(self.offsets[member]), int(self.sizes[member])
        return spans

    def read(self, number: int, extensions: Iterable[str]) -> dict[str, bytes]:
        """Return those members of a sample that have one of the ``extensions``, by extension.

        Raises DualfuseError for a sample with two members of one extension, or with one that is too large.
        """
        spans = self.members(number)
        return {
            extension: self._bytes(number, extension, *spans[extension])
            for extension in extensions
            if extension in spans
        }

    def digest(self) -> str:
        """Return a digest of the names and contents of all members, which does not depend on owners and times.

        The tar is read once, at about 1 GB per second, and the digest stored in its index.
        """
        stored = self.stored()
        if stored.contents.nbytes == sha256().digest_size:
            return stored.contents.tobytes().hex()
        offsets, first, links = np.unique(self.offsets, return_index=True, return_inverse=True)
        content = sha256()
        for part in (self.names, self.name_ends, self.sizes, self.first, links):
            content.update(np.ascontiguousarray(part).data)
        with memoryview(mapped(self.path, int(self.stamp[1]), int(self.stamp[2]))) as view:
            for start, size in zip(offsets.tolist(), self.sizes[first].tolist(), strict=True):
                content.update(view[start : start + size])
        self.add(contents=np.frombuffer(content.digest(), np.uint8))
        return content.hexdigest()

    def _bytes(self, number: int, extension: str, offset: int, size: int) -> bytes:
        limit = MAX_JSON if extension == "json" else MAX_MEMBER
        if size > limit:
            raise DualfuseError(f"{self.key(number)}.{extension} has {size:,} bytes; at most {limit:,} are read")
        return mapped(self.path, int(self.stamp[1]), int(self.stamp[2]))[offset : offset + size]

    def _name(self, member: int) -> str:
        start = int(self.name_ends[member - 1]) if member else 0
        return self.names[start : int(self.name_ends[member])].tobytes().decode(errors="backslashreplace")


class _Damaged(DualfuseError):
    """The rest of a tar cannot be read."""


def is_tar_name(name: str) -> bool:
    """Return whether a file is a tar by its name, compressed or not."""
    return name.lower().endswith((".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst"))


def _stamp(path: Path) -> np.ndarray:
    stat = check_regular(path)
    return np.array([INDEX_FORMAT, stat.st_size, stat.st_mtime_ns])


def _split(name: str) -> tuple[str, str]:
    """Split a member's name into the key of its sample and its extension; both empty if it belongs to no sample."""
    match = NAME.fullmatch(name)
    if match is None or NOT_A_SAMPLE.match(name):
        return "", ""
    return match["key"], match["extension"].lower()


def _scan(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays of a :class:`TarIndex` from the headers of a tar file, and where it is damaged."""
    names: list[bytes] = []
    spans: list[tuple[int, int]] = []
    first: dict[str, int] = {}
    last = damage = ""
    try:
        for name, offset, size in _members(path):
            key, _ = _split(name)
            if not key:
                continue
            if key != last and key in first:
                raise DualfuseError(f"{path}: the members of {key} are not adjacent; create the tar with --sort=name")
            last = key
            first.setdefault(key, len(names))
            names.append(name.encode(errors="surrogateescape"))
            spans.append((offset, size))
    except _Damaged as error:
        damage = str(error)
    offsets, sizes = np.array(spans, np.int64).reshape(-1, 2).T
    arrays = {
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        "offsets": offsets,
        "sizes": sizes,
        "first": np.array([*first.values(), len(names)], np.int64),
    }
    return arrays, damage


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of all files and hard links; raises DualfuseError unless it is a complete tar."""
    with open_regular(path) as file:
        try:
            tar = tarfile.open(fileobj=file, mode="r:", errors="surrogateescape")  # noqa: SIM115 - file is closed
        except Exception as error:  # TarError, or any other error that a malicious header causes
            file.seek(0)
            program = COMPRESSED.get(file.read(2))
            unpacked = f"{path.name.partition('.')[0]}-unpacked.tar"
            unpack = f"compressed with {program}; unpack it: {program} -dc {path.name} > {unpacked}"
            reason = unpack if program else f"not a tar file: {error}"
            raise DualfuseError(f"{path} is {reason}") from error
        yield from _headers(path, file, tar)


def _headers(path: Path, file: BinaryIO, tar: tarfile.TarFile) -> Iterator[tuple[str, int, int]]:
    """Follow the headers up to the final block of zeros; tarfile itself would stop at a damaged header."""
    total, start = path.stat().st_size, 0
    files: dict[str, tuple[int, int]] = {}
    file.seek(0)
    while file.read(tarfile.BLOCKSIZE) != END:
        file.seek(start)
        try:
            member = tarfile.TarInfo.fromtarfile(tar)
        except Exception as error:  # HeaderError, or any other error that a malicious header causes
            raise _Damaged(f"{path} is truncated or damaged at byte {start:,} of {total:,}: {error}") from error
        if not start < tar.offset < total or member.size < 0 or len(member.name) > MAX_NAME:
            # the header points backwards, or beyond the end
            content = f"{member.size:,} bytes in {member.name[:100]}"
            raise _Damaged(f"{path} is truncated or damaged at byte {start:,} of {total:,}: {content}")
        start = file.seek(tar.offset)
        if member.isreg() and not member.issparse():
            files[member.name] = member.offset_data, member.size
        elif member.islnk() and member.linkname in files:
            files[member.name] = files[member.linkname]
        else:
            continue
        yield member.name, *files[member.name]


def mapped(path: Path, size: int, mtime_ns: int) -> mmap.mmap:
    """Return a memory-mapped file; raises ``ChangedFile`` if its size or modification time changed, or if it is gone.

    This is checked on every call, because reading beyond the end of a truncated mapped file kills the process.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ChangedFile(f"{path} is no longer readable: {error.strerror}; restore it and start again") from error
    if (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns):
        raise ChangedFile(f"{path} has changed since it was opened; start again")
    return _map(path, size, mtime_ns)


@lru_cache(maxsize=OPEN_TARS)
def _map(path: Path, size: int, mtime_ns: int) -> mmap.mmap:
    """Map a file; size and modification time are part of the cache key."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
