"""Writes samples into tar shards (WebDataset layout), byte for byte the same every time.

Where several samples of a shard ask about one image, the first holds it, and the others a hard link of the tar.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dualfuse.data.image.image_file import image_suffix
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import LABEL_MAP, MAX_OTHER_IMAGES
from dualfuse.data.shards.tar_index import TarIndex
from dualfuse.errors import DualfuseError
from dualfuse.prepare.stored_files import Stored

SAMPLES_PER_SHARD = 10_000
BYTES_PER_SHARD = 64 << 20


@dataclass(frozen=True)
class Mark:
    """Where a writer stands: what came before is safe on disk, what comes after can be thrown away."""

    shards: int = 0
    """Complete shards; also the number of the open one."""
    in_shard: int = 0
    """Samples in the open shard."""
    size: int = 0
    """Bytes in the open shard."""
    samples: int = 0
    """Samples in all shards, complete or not."""


_BEGINNING = Mark()


class ShardWriter:
    """Writes ``NAME-00000.tar``, ``NAME-00001.tar`` and so on into a folder.

    A shard carries the ending ``.part`` until it is complete, so no reader ever meets half a shard. ``mark`` and the
    argument ``start`` let another process go on where this one was stopped.
    """

    def __init__(
        self, folder: Path, name: str, start: Mark = _BEGINNING, *, limit: tuple[int, int] | None = None
    ) -> None:
        """``limit`` is the largest number of samples and of bytes in a shard; one larger sample still fits alone."""
        self.folder, self.name, self._at = folder, name, start
        self.max_samples, self.max_bytes = limit or (SAMPLES_PER_SHARD, BYTES_PER_SHARD)
        folder.mkdir(parents=True, exist_ok=True)
        self._stored = Stored()
        self._file = self._reopen() if start.size else None

    def add(self, sample: Sample) -> None:
        """Write one sample, into the next shard if the open one is full."""
        data = _members(sample, self._stored)
        is_full = self._at.in_shard >= self.max_samples or self._at.size + len(data) > self.max_bytes
        if is_full and self._file is not None:
            self._finish()
            data = _members(sample, self._stored)  # of the next shard
        if self._file is None:
            self._file = self._part.open("wb")
        self._file.write(data)
        at = self._at
        self._at = Mark(at.shards, at.in_shard + 1, at.size + len(data), at.samples + 1)

    def mark(self) -> Mark:
        """Bring everything so far safely to disk and says where that is."""
        if self._file is not None:
            _sync(self._file)
        return self._at

    def close(self) -> int:
        """Complete the last shard; gives the number of samples in all of them."""
        if self._file is not None:
            self._finish()
        return self._at.samples

    def stop(self) -> None:
        """Let go of the open shard without completing it."""
        if self._file is not None:
            self._file.close()

    @property
    def shards(self) -> tuple[Path, ...]:
        """The shards that are complete."""
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
        # The shard may have been completed after the mark: take it back, cut off what came later, go on.
        if not self._part.exists() and self._shard.exists():
            self._shard.replace(self._part)
        if not self._part.exists() or self._part.stat().st_size < self._at.size:
            raise DualfuseError(f"{self._part} has gone or is cut off; remove the folder {self.folder} and start again")
        file = self._part.open("r+b")
        file.truncate(self._at.size)
        self._stored = Stored.of(file)
        file.seek(self._at.size)
        return file

    def _finish(self) -> None:
        assert self._file is not None
        end = tarfile.RECORDSIZE - self._at.size % tarfile.RECORDSIZE
        self._file.write(bytes(end if end >= 2 * tarfile.BLOCKSIZE else end + tarfile.RECORDSIZE))
        _sync(self._file)
        self._file.close()
        self._file, self._stored = None, Stored()
        self._part.replace(self._shard)
        TarIndex.of(self._shard)  # so that no reader has to make it
        self._at = Mark(self._at.shards + 1, 0, 0, self._at.samples)


def write_shards(
    samples: Iterable[Sample], folder: Path, name: str = "train", *, limit: tuple[int, int] | None = None
) -> tuple[Path, ...]:
    """Write all ``samples`` into shards called ``name`` and gives the shards; ``limit`` as in ``ShardWriter``."""
    writer = ShardWriter(folder, name, limit=limit)
    try:
        for sample in samples:
            writer.add(sample)
        writer.close()
    finally:
        writer.stop()
    return writer.shards


def _members(sample: Sample, stored: Stored) -> bytes:
    """Return the tar members of one sample: image, further images, label map, texts (one a line) and meta."""
    if not sample.key.isascii() or not 0 < len(sample.key) <= 90 or set(sample.key) & set("./ "):
        raise DualfuseError(f"the key {sample.key!r} must be 1 to 90 ASCII characters without dot, slash and space")
    if len(sample.other_images) > MAX_OTHER_IMAGES:
        raise DualfuseError(
            f"{sample.key} has {len(sample.other_images)} further images; at most {MAX_OTHER_IMAGES} are read"
        )
    lines = "".join(" ".join(text.split()) + "\n" for text in sample.texts)
    meta = json.dumps(dict(sample.meta), sort_keys=True, ensure_ascii=False)
    return b"".join(
        (
            _image(sample, "", sample.image, stored),
            *(_image(sample, f"{number}.", other, stored) for number, other in enumerate(sample.other_images, start=1)),
            *([_member(f"{sample.key}.{LABEL_MAP}", sample.label_map)] if sample.label_map else []),
            _member(f"{sample.key}.txt", lines.encode()),
            _member(f"{sample.key}.json", meta.encode()),
        )
    )


def _image(sample: Sample, number: str, data: bytes, stored: Stored) -> bytes:
    suffix = image_suffix(data)
    if not suffix:
        raise DualfuseError(
            f"{sample.key}: shards hold JPEG, PNG or WebP, this image is none of them; convert it first"
        )
    name = f"{sample.key}.{number}{suffix}"
    holder = stored.member(sample, name, data)
    return _member(name, data) if holder == name else _link(name, holder)


def _link(name: str, holder: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.LNKTYPE, holder
    return info.tobuf(tarfile.USTAR_FORMAT)


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # owner, group and time of change stay 0: equal input gives equal bytes
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _sync(file: io.BufferedIOBase) -> None:
    file.flush()
    os.fsync(file.fileno())
