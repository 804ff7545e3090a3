"""Reuse of an earlier conversion: items that have not changed are copied from its shards without decoding."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from dualfuse.data.image.image_file import ConvertedImage
from dualfuse.data.sample import BrokenSample
from dualfuse.data.shards.shards import Shards
from dualfuse.io import PARTIAL, remove_folder, replace_folder
from dualfuse.prepare.checks import ItemChecker, PreparedItem, SkippedItem, clean_texts
from dualfuse.prepare.sources.source import Item, Slice
from dualfuse.prepare.summary import Tally, load_tally, version

FINGERPRINTS = "fingerprints.txt"
"""A line for each item: its fingerprint, and the conversions of its images, separated by tabs."""
UPDATE = ".update"
"""Sub-folder in which an update is written until it is complete."""


def fingerprint(item: Item) -> str:
    """Return 32 hexadecimal digits that change with the fields of an item, and with its files (size and time)."""
    images = [_stamp(source) for source in (item.image, *item.other_images, item.label_map)]
    fields = (item.name, item.texts, item.split, item.problem, item.detail, item.note, [*item.meta.items()], images)
    text = json.dumps((*fields, dict(item.label), dict(item.keep)), default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _stamp(source: Slice | bytes) -> object:
    if isinstance(source, bytes):
        return blake2b(source, digest_size=16).hexdigest()
    try:
        status = os.stat(source.path)
    except (OSError, ValueError):  # a missing file, or an invalid name
        return source.remark
    return status.st_size, status.st_mtime_ns, source.offset, source.size, source.remark


@dataclass(frozen=True)
class Reuser:
    """Function that returns the outcome of an item from an earlier conversion, or else that of ``check``."""

    check: ItemChecker
    folder: Path | None = None
    """The complete earlier conversion, with the same options; None: there is none."""

    def __post_init__(self) -> None:
        """Read the lists of items of the earlier conversion."""
        earlier = _Outcomes(self.folder) if self.folder else None
        object.__setattr__(self, "_earlier", earlier)

    def __call__(self, item: Item) -> PreparedItem | SkippedItem:
        """Return what to write, or the reason for skipping, with the fingerprint of the item; thread-safe."""
        digest = fingerprint(item)
        earlier: _Outcomes | None = getattr(self, "_earlier", None)
        outcome = earlier.get(digest, item) if earlier else None
        return replace(outcome or self.check(item), fingerprint=digest)


class _Outcomes:
    """The outcomes of a complete conversion by the fingerprints of its items."""

    def __init__(self, folder: Path) -> None:
        tally = load_tally(folder / "prepared.json")
        assert tally is not None
        self._numbers: dict[str, tuple[int, tuple[str, ...]]] = {}
        for number, line in enumerate(fingerprint_lines(folder, tally)):
            digest, *changes = line.split("\t")
            self._numbers[digest] = number, tuple(changes)
        self._skipped = {_number(line["key"]): line for line in map(json.loads, _lines(folder / "skipped.jsonl"))}
        self._samples: dict[int, tuple[str, Shards, int]] = {}
        for split, mark in tally.splits.items():
            for shard in range(mark.shards):
                shards = Shards.open(folder / f"{split}-{shard:05d}.tar")
                keys = (shards.key(index).rpartition("/")[2] for index in range(len(shards)))
                self._samples |= {_number(key): (split, shards, index) for index, key in enumerate(keys)}

    def get(self, digest: str, item: Item) -> PreparedItem | SkippedItem | None:
        """Return the outcome of an equal item; None if there was none, or its sample is broken."""
        number, changes = self._numbers.get(digest, (-1, ()))
        if number in self._skipped:
            return SkippedItem(self._skipped[number]["reason"], self._skipped[number]["detail"])
        if number not in self._samples:
            return None
        split, shards, index = self._samples[number]
        try:
            sample = shards[index]
        except BrokenSample:
            return None
        width, height = (int(str(sample.meta[name])) for name in ("width", "height"))
        first, *others = (
            ConvertedImage(data, width, height, change)
            for data, change in zip((sample.image, *sample.other_images), changes, strict=True)
        )
        return PreparedItem(first, clean_texts(item), split, tuple(others), sample.label_map)


def fingerprint_lines(folder: Path, tally: Tally) -> Iterator[str]:
    """Yield the line of each item; nothing if another version of dualfuse wrote the folder."""
    path = folder / FINGERPRINTS
    if tally.version == version() and path.is_file() and path.stat().st_size == tally.fingerprints_size:
        yield from _lines(path)


def is_current(folder: Path, tally: Tally, items: Iterator[Item]) -> bool:
    """Return whether a complete conversion has the outcomes of exactly these items."""
    lines = (line.partition("\t")[0] for line in fingerprint_lines(folder, tally))
    return all(fingerprint(item) == next(lines, "") for item in items) and next(lines, None) is None


def install_update(folder: Path) -> None:
    """Replace a conversion by its complete update, if there is one; other files in the folder are kept."""
    update, complete = folder / UPDATE, folder.with_name(folder.name + PARTIAL)
    if (update / "prepared.json").is_file():
        remove_folder(complete)
        os.replace(update, complete)
    tally = load_tally(complete / "prepared.json")
    if tally is None:
        return
    earlier = load_tally(folder / "prepared.json")
    splits = tuple(f"{split}-" for split in earlier.splits) if earlier else ()
    for path in folder.iterdir() if folder.is_dir() else ():
        is_shard = path.name.startswith(splits) and ".tar" in path.name
        if not is_shard and not (complete / path.name).exists() and path.name != UPDATE:
            os.replace(path, complete / path.name)
    replace_folder(complete, folder)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from (line.rstrip("\n") for line in file)


def _number(key: str) -> int:
    """Return the number of an item in the key of its sample."""
    return int(key.partition("-")[0])
