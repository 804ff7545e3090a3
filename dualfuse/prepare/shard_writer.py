"""Writing of samples into tar shards in the WebDataset layout; equal samples give bytewise equal shards.

If several samples of a shard share an image, the first stores it, and the others a hard link of the tar.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from dualfuse.data.image.image_file import image_suffix
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import LABEL_MAP, MAX_OTHER_IMAGES, count_captions
from dualfuse.data.shards.tar_index import TarIndex
from dualfuse.errors import DualfuseError
from dualfuse.io import naming, to_json

SAMPLES_PER_SHARD = 10_000
BYTES_PER_SHARD = 64 << 20


@dataclass(frozen=True)
class Mark:
    """The position of a writer: what was written before is on disk, what was written after can be removed."""

    shards: int = 0
    """Number of complete shards, which is the number of the open one, too."""
    in_shard: int = 0
    """Number of samples in the open shard."""
    size: int = 0
    """Size of the open shard in bytes."""
    samples: int = 0
    """Number of samples in all shards, including the open one."""


class _StoredImages:
    """The images of one shard, by their name in the source ("name" of the meta) and their content.

    Equal images with different names, or without a name, are stored several times, so that tars of captions hold no
    links, which not every program follows.
    """

    def __init__(self) -> None:
        """Start an empty shard."""
        self._members: dict[tuple[str, bytes], str] = {}

    @classmethod
    def of(cls, shard: io.BufferedRandom) -> _StoredImages:
        """Read the images of an unfinished shard."""
        stored, images = cls(), dict[str, bytes]()
        shard.seek(0)
        with tarfile.open(fileobj=shard, mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member)
                data = content.read() if content and not member.islnk() else b""
                if member.name.endswith(".json"):  # the last member of a sample
                    stored._add(images, json.loads(data))
                    images = {}
                elif data and not member.name.endswith(".txt"):
                    images[member.name] = data
        return stored

    def find(self, sample: Sample, name: str, data: bytes) -> str:
        """Return the name of the member that holds an image of the sample; ``name`` itself for a new image."""
        holder = self._members.get(_key(sample.meta, data), name)
        self._add({name: data}, sample.meta)
        return holder

    def _add(self, images: Mapping[str, bytes], meta: Mapping[str, object]) -> None:
        if "name" in meta:
            for name, data in images.items():
                self._members.setdefault(_key(meta, data), name)


def _key(meta: Mapping[str, object], data: bytes) -> tuple[str, bytes]:
    return str(meta.get("name")), blake2b(data, digest_size=16).digest()


_START = Mark()


class ShardWriter:
    """Writer of ``NAME-00000.tar``, ``NAME-00001.tar``, ... into a folder.

    A shard has the suffix ``.part`` until it is complete. With ``mark`` and the argument ``start`` another process
    resumes where this one was interrupted.
    """

    def __init__(self, folder: Path, name: str, start: Mark = _START, *, limit: tuple[int, int] | None = None) -> None:
        """``limit`` is the maximum of samples and of bytes per shard; a larger sample gets a shard of its own."""
        self.folder, self.name, self._at = folder, name, start
        self.max_samples, self.max_bytes = limit or (SAMPLES_PER_SHARD, BYTES_PER_SHARD)
        folder.mkdir(parents=True, exist_ok=True)
        self._images = _StoredImages()
        self._file = self._reopen() if start.size else None

    def add(self, sample: Sample) -> None:
        """Write a sample, into a new shard if the open one is full."""
        data = _members(sample, self._images)
        is_full = self._at.in_shard >= self.max_samples or self._at.size + len(data) > self.max_bytes
        if is_full and self._file is not None:
            self._finish()
            data = _members(sample, self._images)  # without links to images of the full shard
        if self._file is None:
            self._file = self._part.open("wb")
        with naming(self._part):
            self._file.write(data)
        at = self._at
        self._at = Mark(at.shards, at.in_shard + 1, at.size + len(data), at.samples + 1)

    def mark(self) -> Mark:
        """Sync the open shard to disk and return the position."""
        if self._file is not None:
            with naming(self._part):
                _sync(self._file)
        return self._at

    def close(self) -> int:
        """Complete the last shard and return the number of samples in all shards."""
        if self._file is not None:
            self._finish()
        return self._at.samples

    def stop(self) -> None:
        """Close the open shard without completing it; what it cannot write is written again by the next process."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    @property
    def shards(self) -> tuple[Path, ...]:
        """The complete shards."""
        return tuple(self._path(number) for number in range(self._at.shards))

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number:05d}.tar"

    @property
    def _shard(self) -> Path:
        return self._path(self._at.shards)

    @property
    def _part(self) -> Path:
        return self._shard.with_suffix(".tar.part")

    def _reopen(self) -> io.BufferedRandom:
        # The shard may have been completed after the mark: reopen it and remove what was written after the mark.
        if not self._part.exists() and self._shard.exists():
            self._shard.replace(self._part)
        if not self._part.exists() or self._part.stat().st_size < self._at.size:
            raise DualfuseError(
                f"{self._part} is missing or truncated; remove the folder {self.folder} and start again"
            )
        file = self._part.open("r+b")
        file.truncate(self._at.size)
        self._images = _StoredImages.of(file)
        file.seek(self._at.size)
        return file

    def _finish(self) -> None:
        assert self._file is not None
        end = tarfile.RECORDSIZE - self._at.size % tarfile.RECORDSIZE
        with naming(self._part):
            self._file.write(bytes(end if end >= 2 * tarfile.BLOCKSIZE else end + tarfile.RECORDSIZE))
            _sync(self._file)
            self._file.close()
        self._file, self._images = None, _StoredImages()
        self._part.replace(self._shard)
        index = TarIndex.of(self._shard)
        index.digest()  # stores both, so that readers need not compute them; and the numbers of captions
        count_captions(index)
        self._at = Mark(self._at.shards + 1, 0, 0, self._at.samples)


def write_shards(
    samples: Iterable[Sample], folder: Path, name: str = "train", *, limit: tuple[int, int] | None = None
) -> tuple[Path, ...]:
    """Write ``samples`` into shards called ``name`` and return their paths; ``limit`` as in ``ShardWriter``."""
    writer = ShardWriter(folder, name, limit=limit)
    try:
        for sample in samples:
            writer.add(sample)
        writer.close()
    finally:
        writer.stop()
    return writer.shards


def _members(sample: Sample, stored: _StoredImages) -> bytes:
    """Return the tar members of a sample: image, further images, label map, texts (one per line) and meta."""
    if not sample.key.isascii() or not 0 < len(sample.key) <= 90 or set(sample.key) & set("./ "):
        raise DualfuseError(f"the key {sample.key!r} must be 1 to 90 ASCII characters without dots, slashes and spaces")
    if len(sample.other_images) > MAX_OTHER_IMAGES:
        raise DualfuseError(
            f"{sample.key} has {len(sample.other_images)} further images; at most {MAX_OTHER_IMAGES} are read"
        )
    lines = "".join(" ".join(text.split()) + "\n" for text in sample.texts)
    meta = to_json(dict(sample.meta), sort_keys=True)
    return b"".join(
        (
            _image(sample, "", sample.image, stored),
            *(_image(sample, f"{number}.", other, stored) for number, other in enumerate(sample.other_images, start=1)),
            *([_member(f"{sample.key}.{LABEL_MAP}", sample.label_map)] if sample.label_map else []),
            _member(f"{sample.key}.txt", lines.encode()),
            _member(f"{sample.key}.json", meta.encode()),
        )
    )


def _image(sample: Sample, number: str, data: bytes, stored: _StoredImages) -> bytes:
    suffix = image_suffix(data)
    if not suffix:
        raise DualfuseError(
            f"{sample.key}: shards hold JPEG, PNG and WebP, but this image has another format; convert it first"
        )
    name = f"{sample.key}.{number}{suffix}"
    holder = stored.find(sample, name, data)
    return _member(name, data) if holder == name else _link(name, holder)


def _link(name: str, holder: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.LNKTYPE, holder
    return info.tobuf(tarfile.USTAR_FORMAT)


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # owner, group and modification time stay 0: equal input gives equal bytes
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _sync(file: io.BufferedIOBase) -> None:
    file.flush()
    os.fsync(file.fileno())
