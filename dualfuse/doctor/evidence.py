"""What is kept of all samples while a data set is examined, and what follows from comparing them."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dualfuse.data.shards.shards import Shards
from dualfuse.doctor.findings import ADVICE, Finding
from dualfuse.doctor.fingerprint import group, near_pairs
from dualfuse.doctor.inspect import SampleFindings

KEPT = 100  # examples of each finding


@dataclass
class Part:
    """One tar of the set: its split, its samples, and the number of the first of them in the whole set."""

    split: str
    shards: Shards
    first: int


@dataclass
class Evidence:
    """Some hundred bytes a sample, in the order of the samples."""

    parts: list[Part] = field(default_factory=list)
    content: array[int] = field(default_factory=lambda: array("Q"))
    look: array[int] = field(default_factory=lambda: array("Q"))
    colours: bytearray = field(default_factory=bytearray)
    texts: array[int] = field(default_factory=lambda: array("Q"))
    owners: array[int] = field(default_factory=lambda: array("q"))
    """Whose each text is."""
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    examples: dict[str, list[tuple[str, tuple[int, ...]]]] = field(default_factory=lambda: defaultdict(list))
    """Of each finding: what to print, and the samples it speaks of."""

    def add(self, seen: SampleFindings) -> None:
        """Keep what was seen of the next sample."""
        number = len(self.content)
        self.content.append(seen.content)
        self.look.append(seen.look)
        self.colours += seen.colours
        self.texts.extend(seen.texts)
        self.owners.extend([number] * len(seen.texts))
        for name, detail in seen.flaws:
            self.note(name, f"{self.key(number)}: {detail}".removesuffix(": "), (number,))

    def note(self, name: str, example: str, numbers: tuple[int, ...] = (), count: int = 1) -> None:
        """Count ``count`` flaws called ``name``, and keeps the example if there are not yet many."""
        self.counts[name] += count
        if len(self.examples[name]) < KEPT:
            self.examples[name].append((example, numbers))

    def compare(self) -> None:
        """Compare all samples with one another; to be called once, when all were added."""
        content = np.array(self.content, np.uint64)
        same = list(_equal(content))
        copies = {number for group_ in same for number in group_[1:]}
        singles = np.array([n for n in range(len(content)) if content[n] and n not in copies], np.int64)
        colours = np.frombuffer(self.colours, np.uint8).reshape(-1, 48)
        alike = group(near_pairs(np.array(self.look, np.uint64)[singles], colours[singles]))
        self._note_groups(same, "same image again", "same image in two splits")
        near = (singles[numbers].tolist() for numbers in alike)
        self._note_groups(near, "near-same image again", "near-same image in two splits")
        owners = (sorted({self.owners[n] for n in numbers}) for numbers in _equal(np.array(self.texts, np.uint64)))
        self._note_groups(owners, "same text on several images", "same text in two splits")

    def findings(self) -> tuple[Finding, ...]:
        """Return what was found, in the order of ``ADVICE``."""
        names = sorted(self.counts, key=list(ADVICE).index)
        return tuple(Finding(name, self.counts[name], tuple(text for text, _ in self.examples[name])) for name in names)

    def part(self, number: int) -> Part:
        """Return the tar in which sample ``number`` lies."""
        return self.parts[bisect_right(self.parts, number, key=lambda part: part.first) - 1]

    def key(self, number: int) -> str:
        """Return the key of sample ``number``."""
        part = self.part(number)
        return part.shards.key(number - part.first)

    def _note_groups(self, groups: Iterable[Sequence[int]], within: str, across: str) -> None:
        """Note groups: ``within`` where a split has several members, ``across`` where several splits have some."""
        for numbers in groups:
            by_split: dict[str, list[int]] = defaultdict(list)
            for number in numbers:
                by_split[self.part(number).split].append(number)
            for members in by_split.values():
                if len(members) > 1:
                    self.note(within, self._keys(members), tuple(members[:4]), count=len(members) - 1)
            if len(by_split) > 1:
                firsts = [members[0] for members in by_split.values()]
                self.note(across, self._keys(firsts), tuple(firsts))

    def _keys(self, numbers: Sequence[int]) -> str:
        rest = f" and {len(numbers) - 4} more" if len(numbers) > 4 else ""
        return " = ".join(self.key(number) for number in numbers[:4]) + rest


def _equal(values: np.ndarray) -> Iterator[list[int]]:
    """Return the places of equal ``values`` (N,), wherever there are several; 0 stands for no value."""
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.diff(values[order])) + 1
    runs = zip(np.append(0, ends).tolist(), np.append(ends, len(order)).tolist(), strict=True)
    found = [order[start:end].tolist() for start, end in runs if end - start > 1 and values[order[start]]]
    return iter(sorted(found))
