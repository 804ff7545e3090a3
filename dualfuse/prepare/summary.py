"""What ``prepare`` knows about its output: while it runs (``progress.json``) and at the end (``prepared.json``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from dualfuse import upgrade
from dualfuse.errors import DualfuseError
from dualfuse.io import listing, write_json
from dualfuse.prepare.shard_writer import Mark
from dualfuse.prepare.sources.item import Item

EXAMPLES = 3
MOST_LABELS = 30_000  # ImageNet has 21,841


@dataclass
class Tally:
    """Everything that was counted so far; enough to go on from here."""

    request: Mapping[str, object]
    """The source and the options; another request may not go on with the same folder."""
    version: str
    consumed: int = 0
    listing: str = ""
    """A hash over what the source said about all items that were consumed."""
    splits: dict[str, Mark] = field(default_factory=dict)
    captions: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """For each reason, the names of the first that were left out."""
    noted: dict[str, int] = field(default_factory=dict)
    """What people should know of samples that were kept."""
    noted_examples: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    """Samples with each label."""
    remarks: list[str] = field(default_factory=list)
    """What the source says about itself as a whole."""
    skipped_size: int = 0
    """Bytes in ``skipped.jsonl``."""

    @property
    def samples(self) -> int:
        """Samples that were written, over all splits."""
        return sum(mark.samples for mark in self.splits.values())

    def leave_out(self, name: str, reason: str) -> None:
        """Count one item that was left out."""
        _count(self.skipped, self.examples, name, reason)

    def keep(self, item: Item) -> None:
        """Count what is known of one item that was written: its label, what is to note."""
        if item.note:
            _count(self.noted, self.noted_examples, item.title, item.note)
        if "label" in item.label:
            label = str(item.label["label"])
            self.labels[label] = self.labels.get(label, 0) + 1
        if len(self.labels) > MOST_LABELS:
            raise DualfuseError(f"more than {MOST_LABELS:,} different labels; is this the column to learn?")


@dataclass(frozen=True)
class Summary:
    """What ``prepare`` made, as ``prepared.json`` has it; prints nicely with rich."""

    folder: Path
    tally: Tally

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Print the splits, then labels, then what was changed, then what was left out and why."""
        table = Table("split", "images", "captions", "shards", title=Text(str(self.folder)), title_justify="left")
        for name, mark in sorted(self.tally.splits.items()):
            table.add_row(name, f"{mark.samples:,}", f"{self.tally.captions.get(name, 0):,}", f"{mark.shards:,}")
        yield table
        yield from (Text(line) for line in self._remarks())

    def _remarks(self) -> Iterator[str]:
        yield from self.tally.remarks
        if self.tally.labels:
            common = sorted(self.tally.labels.items(), key=lambda pair: -pair[1])
            yield f"{len(common):,} labels: {listing((f'{label} {count:,}' for label, count in common), 20)}"
        for change, count in sorted(self.tally.changed.items()):
            yield f"{count:,} {change}"
        for note, count in sorted(self.tally.noted.items(), key=lambda pair: -pair[1]):
            yield f"{count:,} kept: {note}, such as {', '.join(self.tally.noted_examples[note])}"
        for reason, count in sorted(self.tally.skipped.items(), key=lambda pair: -pair[1]):
            yield f"{count:,} left out: {reason}, such as {', '.join(self.tally.examples[reason])}"
        if self.tally.skipped:
            yield f"all that were left out: {self.folder / 'skipped.jsonl'}"


def _count(counts: dict[str, int], examples: dict[str, list[str]], name: str, reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + 1
    first = examples.setdefault(reason, [])
    if len(first) < EXAMPLES:
        first.append(name)


def extend_listing(listing: str, item: Item) -> str:
    """Return the hash ``listing`` extended by what a source says about ``item`` (its image is not read)."""
    asked = (item.title, item.label, item.note) if item.label else ()
    said = json.dumps((listing, item.name, item.texts, item.split, item.problem, *asked), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def save_tally(path: Path, tally: Tally) -> None:
    """Write ``tally`` to ``path``; a process that is killed meanwhile leaves the old file whole."""
    write_json(path, asdict(tally), sort_keys=True)


def load_tally(path: Path) -> Tally | None:
    """Return the tally at ``path``; None where there is no such file."""
    if not path.is_file():
        return None
    content = upgrade.prepared(json.loads(path.read_text(encoding="utf-8")))
    splits = {name: Mark(**mark) for name, mark in content.pop("splits").items()}
    return Tally(**content, splits=splits)
