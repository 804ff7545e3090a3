"""Counts of ``prepare``: while it runs (``progress.json``) and at the end (``prepared.json``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from dualfuse import upgrade
from dualfuse.errors import DualfuseError
from dualfuse.files import read_json
from dualfuse.io import listing, write_json
from dualfuse.prepare.shard_writer import Mark
from dualfuse.prepare.sources.label_names import MAX_LABELS
from dualfuse.prepare.sources.source import Item, Slice
from dualfuse.printable import brief

EXAMPLES = 3


@dataclass
class Tally:
    """All counts, and what is needed to resume."""

    request: Mapping[str, object]
    """The source and the options; a folder can only be resumed with the same request."""
    version: str
    consumed: int = 0
    listing: str = ""
    """Hash of the fields of all consumed items, without their images."""
    splits: dict[str, Mark] = field(default_factory=dict)
    captions: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Names of the first skipped items, by reason."""
    noted: dict[str, int] = field(default_factory=dict)
    """Number of written samples, by note."""
    noted_examples: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    """Number of samples, by label."""
    remarks: list[str] = field(default_factory=list)
    """Remarks about the source as a whole."""
    skipped_size: int = 0
    """Size of ``skipped.jsonl`` in bytes."""
    fingerprints_size: int = 0
    """Size of ``fingerprints.txt`` in bytes."""

    @property
    def samples(self) -> int:
        """Number of written samples in all splits."""
        return sum(mark.samples for mark in self.splits.values())

    def skip(self, name: str, reason: str) -> None:
        """Count a skipped item."""
        _count(self.skipped, self.examples, name, reason)

    def keep(self, item: Item) -> None:
        """Count the label and the note of a written item."""
        images = (item.image, *item.other_images)
        for note in dict.fromkeys((item.note, *(image.remark for image in images if isinstance(image, Slice)))):
            if note:
                _count(self.noted, self.noted_examples, item.title, note)
        if "label" in item.label:
            label = str(item.label["label"])
            self.labels[label] = self.labels.get(label, 0) + 1
        if len(self.labels) > MAX_LABELS:
            raise DualfuseError(f"more than {MAX_LABELS:,} different labels; is this the right label column?")


@dataclass(frozen=True)
class Summary:
    """The result of ``prepare``, as in ``prepared.json``; printable with rich."""

    folder: Path
    tally: Tally

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the splits, labels, conversions, notes and skipped items."""
        table = Table("split", "images", "captions", "shards", title=Text(str(self.folder)), title_justify="left")
        for name, mark in sorted(self.tally.splits.items()):
            table.add_row(name, f"{mark.samples:,}", f"{self.tally.captions.get(name, 0):,}", f"{mark.shards:,}")
        yield table
        yield from (Text(line) for line in self._remarks())

    def _remarks(self) -> Iterator[str]:
        yield from self.tally.remarks
        if self.tally.labels:
            common = sorted(self.tally.labels.items(), key=lambda pair: -pair[1])
            yield f"{len(common):,} labels: {listing((f'{brief(label)} {count:,}' for label, count in common), 20)}"
        for change, count in sorted(self.tally.changed.items()):
            yield f"{count:,} {change}"
        for note, count in sorted(self.tally.noted.items(), key=lambda pair: -pair[1]):
            yield f"{count:,} kept: {note}, such as {', '.join(self.tally.noted_examples[note])}"
        for reason, count in sorted(self.tally.skipped.items(), key=lambda pair: -pair[1]):
            yield f"{count:,} skipped: {reason}, such as {', '.join(self.tally.examples[reason])}"
        if self.tally.skipped:
            yield f"all skipped items: {self.folder / 'skipped.jsonl'}"


def _count(counts: dict[str, int], examples: dict[str, list[str]], name: str, reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + 1
    first = examples.setdefault(reason, [])
    if len(first) < EXAMPLES:
        first.append(brief(name))


def extend_listing(listing: str, item: Item) -> str:
    """Return the hash ``listing`` extended by the fields of ``item``, without its image."""
    labelled = (item.title, item.label, item.note) if item.label else ()
    fields = json.dumps((listing, item.name, item.texts, item.split, item.problem, *labelled), sort_keys=True)
    return hashlib.sha256(fields.encode()).hexdigest()


def save_tally(path: Path, tally: Tally) -> None:
    """Write ``tally`` to ``path`` atomically."""
    write_json(path, asdict(tally), sort_keys=True)


def load_tally(path: Path) -> Tally | None:
    """Load the tally at ``path``; None if there is no such file."""
    if not path.is_file():
        return None
    content = upgrade.prepared(read_json(path))
    splits = {name: Mark(**mark) for name, mark in content.pop("splits").items()}
    return Tally(**content, splits=splits)


def version() -> str:
    """Return the version of dualfuse, which is stored with every conversion."""
    try:
        return metadata.version("dualfuse")
    except metadata.PackageNotFoundError:  # used from a checkout
        return "not installed"
