"""The output folder of ``prepare``: shards, the list of skipped items, and the progress."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from dualfuse import upgrade
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.files import MAX_TABLE, read_bounded
from dualfuse.io import listing, naming, to_json, write_text
from dualfuse.prepare.checks import MISSING, PreparedItem, SkippedItem
from dualfuse.prepare.earlier import FINGERPRINTS
from dualfuse.prepare.shard_writer import ShardWriter
from dualfuse.prepare.sources.source import Item
from dualfuse.prepare.summary import Summary, Tally, extend_listing, load_tally, save_tally, version

SKIPPED = "skipped.jsonl"
SAVE_EVERY = 1000  # items; work since the last save is repeated after an interruption
MAX_MISSING = 100  # items; if so many images are missing before the first is found, the folder of images is wrong


class PreparedFolder:
    """The writer of the items of a source, in order; it resumes what an earlier process wrote.

    An interruption, even by a signal or a power failure, leaves at most some bytes beyond those in ``progress.json``,
    which the next run removes.
    """

    def __init__(self, folder: Path, request: Mapping[str, object], *, limit: tuple[int, int]) -> None:
        """``request`` is the source and the options; raises ``DualfuseError`` if ``folder`` holds something else."""
        self.folder, self._limit = folder, limit
        self.advice: Mapping[str, str] = {"": "see skipped.jsonl"}
        """What to do if no item is usable, by the most common reason ("": all others)."""
        self._details: dict[str, str] = {}
        upgrade.rename_skipped(folder, SKIPPED)
        finished = load_tally(folder / "prepared.json")
        earlier = finished or load_tally(folder / "progress.json")
        if earlier is None and (others := _others(folder)):
            raise DualfuseError(
                f"{folder} contains {listing(others)}, which this command did not write; give another folder"
            )
        if earlier is not None:
            _compare(earlier.request, request, folder)
        self.tally = earlier or Tally(request, version())
        self.is_finished = finished is not None
        self._writers: dict[str, ShardWriter] = {}
        if self.is_finished:
            (folder / "progress.json").unlink(missing_ok=True)  # of a process that was killed at the very end
            self._check_shards()
        else:
            self._open()

    def skip_done(self, items: Iterator[Item]) -> Iterator[Item]:
        """Skip the items that were written earlier; raises ``DualfuseError`` if they have changed since."""
        listed = ""
        for _ in range(self.tally.consumed):
            item = next(items, None)
            listed = extend_listing(listed, item) if item else ""
        if listed != (self.tally.listing or listed):  # earlier versions hashed other words for problems
            raise self._changed()
        self.tally.listing = listed
        return items

    def write_files(self, files: Mapping[str, str], remarks: Iterable[str]) -> None:
        """Write text files, by name, beside the shards unless they exist already, and store the remarks."""
        for name, text in files.items():
            path = self.folder / name
            if not path.is_file() or read_bounded(path, MAX_TABLE) != text.encode():
                write_text(path, text)
        self.tally.remarks = list(remarks)

    def add(self, item: Item, outcome: PreparedItem | SkippedItem) -> None:
        """Write an item into a shard of its split, or into the list of skipped items."""
        tally = self.tally
        key = f"{tally.consumed:08d}-{_slug(item.name)}".rstrip("-")
        tally.consumed += 1
        tally.listing = extend_listing(tally.listing, item)
        changes: tuple[str, ...] = ()
        if isinstance(outcome, SkippedItem):
            self._skip(key, item, outcome)
        else:
            self._write(key, item, outcome)
            changes = tuple(image.change for image in (outcome.image, *outcome.other_images))
        with naming(self.folder / FINGERPRINTS):
            self._fingerprints.write("\t".join((outcome.fingerprint, *changes)).encode() + b"\n")
        if tally.consumed % SAVE_EVERY == 0:
            self._save()

    def finish(self) -> Summary:
        """Complete all shards and write ``prepared.json``; raises ``DualfuseError`` if there is no sample."""
        if not self.is_finished:
            self._update_splits()
            if not self.tally.samples:
                raise self._nothing()
            for writer in self._writers.values():
                writer.close()
            self._save()
            self._skipped.close()
            self._fingerprints.close()
            save_tally(self.folder / "prepared.json", self.tally)
            (self.folder / "progress.json").unlink()
            self.is_finished = True
        return Summary(self.folder, self.tally)

    def close(self) -> None:
        """Close all files."""
        if not self.is_finished:
            for file in (self._skipped, self._fingerprints):
                with suppress(OSError):  # reported when it was written
                    file.close()
            for writer in self._writers.values():
                writer.stop()
            if not self.tally.consumed:  # nothing was written, so other options can be tried
                (self.folder / "progress.json").unlink(missing_ok=True)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, mark in self.tally.splits.items():
            self._writers[name] = ShardWriter(self.folder, name, mark, limit=self._limit)
        self._skipped = _reopen(self.folder / SKIPPED, self.tally.skipped_size)
        self._fingerprints = _reopen(self.folder / FINGERPRINTS, self.tally.fingerprints_size)
        self._save()

    def _write(self, key: str, item: Item, ready: PreparedItem) -> None:
        split, image, tally = ready.split, ready.image, self.tally
        size = {"width": image.width, "height": image.height}
        meta = {**item.meta, **item.label, "name": item.name, **size}
        meta |= {"keep": dict(item.keep)} if item.keep else {}
        others = tuple(other.data for other in ready.other_images)
        if split not in self._writers:
            self._writers[split] = ShardWriter(self.folder, split, limit=self._limit)
        self._writers[split].add(
            Sample(key, image.data, ready.texts, meta, other_images=others, label_map=ready.label_map)
        )
        tally.captions[split] = tally.captions.get(split, 0) + len(ready.texts)
        for change in filter(None, (fitted.change for fitted in (image, *ready.other_images))):
            tally.changed[change] = tally.changed.get(change, 0) + 1
        tally.keep(item)

    def _skip(self, key: str, item: Item, why: SkippedItem) -> None:
        line = {"key": key, "name": item.name, "reason": why.reason, "detail": why.detail}
        line |= {"id": item.meta["id"]} if "id" in item.meta else {}
        line |= {"keep": dict(item.keep)} if item.keep else {}
        with naming(self.folder / SKIPPED):
            self._skipped.write(to_json(line).encode(errors="backslashreplace") + b"\n")
        self.tally.skip(item.title, why.reason)
        self._details.setdefault(why.reason, why.detail)
        if self.tally.skipped.get(MISSING) == MAX_MISSING and not self._writers:
            raise self._nothing()

    def _update_splits(self) -> None:
        self.tally.splits = {name: writer.mark() for name, writer in self._writers.items()}

    def _save(self) -> None:
        self._update_splits()
        for file, name in ((self._skipped, SKIPPED), (self._fingerprints, FINGERPRINTS)):
            with naming(self.folder / name):
                file.flush()
                os.fsync(file.fileno())
        self.tally.skipped_size, self.tally.fingerprints_size = self._skipped.tell(), self._fingerprints.tell()
        save_tally(self.folder / "progress.json", self.tally)

    def _check_shards(self) -> None:
        for name, mark in self.tally.splits.items():
            for number in range(mark.shards):
                shard = self.folder / f"{name}-{number:05d}.tar"
                if not shard.is_file():
                    raise DualfuseError(
                        f"{shard} is missing; remove the folder {self.folder} to write all shards again"
                    )

    def _changed(self) -> DualfuseError:
        return DualfuseError(
            f"the source has changed since the interrupted conversion to {self.folder} began; remove that folder to "
            "start again"
        )

    def _nothing(self) -> DualfuseError:
        (self.folder / "progress.json").unlink()  # nothing was written, so other options can be tried
        tally = self.tally
        reasons = ", ".join(f"{reason}: {count}" for reason, count in tally.skipped.items()) or "it is empty"
        reason = max(tally.skipped, key=tally.skipped.__getitem__, default="")
        name, detail = tally.examples.get(reason, [""])[0], self._details.get(reason, "")
        hint = self.advice.get(reason, self.advice[""]).replace("{name}", name)
        if reason == MISSING and " is not there, but " in detail:
            hint = detail
        elif detail and hint == self.advice[""]:
            hint = f"{name}: {detail}; {hint}"
        return DualfuseError(f"none of the first {tally.consumed} items is usable ({reasons}); {hint}")


def _reopen(path: Path, size: int) -> BinaryIO:
    """Open a file to append after its first ``size`` bytes; what follows them is removed."""
    file = path.open("r+b" if size else "wb")
    file.truncate(size)
    file.seek(size)
    return file


def _others(folder: Path) -> list[str]:
    """Return the names of tars and of a list in a folder without progress; a conversion without result leaves two."""
    lists = [path for name in (SKIPPED, FINGERPRINTS) if (path := folder / name).is_file() and path.stat().st_size]
    return [path.name for path in (*folder.glob("*.tar"), *(lists if len(lists) == 1 else ()))]


def _compare(old: Mapping[str, object], new: Mapping[str, object], folder: Path) -> None:
    """Raise ``DualfuseError`` with the differences between two requests."""
    before = {
        name: old.get(name, type(value)()) for name, value in new.items()
    }  # options that an earlier version did not have: empty
    different = [f"{name} was {before[name]!r}, is {value!r}" for name, value in new.items() if before[name] != value]
    if different:
        raise DualfuseError(
            f"{folder} was prepared from another source or with other options ({'; '.join(different)}); "
            "give another folder for the output, or remove this one to start again"
        )


def _slug(name: str) -> str:
    """Return a short ASCII reminder of an image's name, for people."""
    stem = re.sub(r"\.\w{2,5}$", "", name.rpartition("/")[2])
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "-", plain)[-40:].strip("-")
