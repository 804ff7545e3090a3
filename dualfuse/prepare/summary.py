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

from dualfuse.prepare.sources.item import Item
from dualfuse.prepare.write import Mark

EXAMPLES = 3


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
    left_out: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """For each reason, the names of the first that were left out."""
    left_out_size: int = 0
    """Bytes in ``left-out.jsonl``."""

    @property
    def samples(self) -> int:
        """Samples that were written, over all splits."""
        return sum(mark.samples for mark in self.splits.values())

    def leave_out(self, name: str, reason: str) -> None:
        """Counts one item that was left out."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(name)


@dataclass(frozen=True)
class Summary:
    """What ``prepare`` made, as ``prepared.json`` has it; prints nicely with rich."""

    folder: Path
    tally: Tally

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Prints the splits, then what was changed, then what was left out and why."""
        table = Table("split", "pictures", "captions", "shards", title=Text(str(self.folder)), title_justify="left")
        for name, mark in sorted(self.tally.splits.items()):
            table.add_row(name, f"{mark.samples:,}", f"{self.tally.captions.get(name, 0):,}", f"{mark.shards:,}")
        yield table
        yield from (Text(line) for line in self._remarks())

    def _remarks(self) -> Iterator[str]:
        for change, count in sorted(self.tally.changed.items()):
            yield f"{count:,} {change}"
        for reason, count in sorted(self.tally.left_out.items(), key=lambda pair: -pair[1]):
            yield f"{count:,} left out: {reason}, such as {', '.join(self.tally.examples[reason])}"
        if self.tally.left_out:
            yield f"all that were left out: {self.folder / 'left-out.jsonl'}"


def extend_listing(listing: str, item: Item) -> str:
    """Gives the hash ``listing`` extended by what a source says about ``item`` (its picture is not read)."""
    said = json.dumps((listing, item.name, item.texts, item.split, item.problem))
    return hashlib.sha256(said.encode()).hexdigest()


def save_tally(path: Path, tally: Tally) -> None:
    """Writes ``tally`` to ``path``; a process that is killed meanwhile leaves the old file whole."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(tally), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def load_tally(path: Path) -> Tally | None:
    """Gives the tally at ``path``; None where there is no such file."""
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    splits = {name: Mark(**mark) for name, mark in content.pop("splits").items()}
    return Tally(**content, splits=splits)
