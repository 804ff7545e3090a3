"""Hashes and findings of all samples of a data set, and comparisons between samples."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from dualfuse.data.sample import BrokenSample
from dualfuse.data.shards.shards import Shards
from dualfuse.doctor.findings import ADVICE, Finding
from dualfuse.doctor.fingerprint import group, near_pairs
from dualfuse.doctor.inspect import SampleFindings
from dualfuse.io import listing

MAX_EXAMPLES = 100  # of each finding


@dataclass
class Part:
    """One tar of the set: its split, its samples, and the index of the first of them in the set."""

    split: str
    shards: Shards
    first: int


@dataclass
class Evidence:
    """Hashes of all samples, in their order (about a hundred bytes per sample), and findings."""

    parts: list[Part] = field(default_factory=list)
    content: array[int] = field(default_factory=lambda: array("Q"))
    perceptual: array[int] = field(default_factory=lambda: array("Q"))
    colors: bytearray = field(default_factory=bytearray)
    texts: array[int] = field(default_factory=lambda: array("Q"))
    owners: array[int] = field(default_factory=lambda: array("q"))
    """Index of the sample of each text."""
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    examples: dict[str, list[tuple[str, tuple[int, ...]]]] = field(default_factory=lambda: defaultdict(list))
    """For each finding: descriptions, and the indices of the samples."""

    def add(self, findings: SampleFindings) -> None:
        """Store the findings of the next sample."""
        number = len(self.content)
        self.content.append(findings.content)
        self.perceptual.append(findings.perceptual)
        self.colors += findings.colors
        self.texts.extend(findings.texts)
        self.owners.extend([number] * len(findings.texts))
        for name, detail in findings.defects:
            self.note(name, (number,), detail)

    def note(self, name: str, numbers: Sequence[int], detail: str = "", count: int = 1) -> None:
        """Count a finding, and store an example unless there are many already: equal samples, or one with details."""
        self.counts[name] += count
        if len(self.examples[name]) < MAX_EXAMPLES:
            equal = listing(map(self.title, numbers[:4]), separator=" = ")
            equal += f", and {len(numbers) - 4:,} more" if len(numbers) > 4 else ""
            example = ": ".join(filter(None, (equal if numbers else "", detail)))
            self.examples[name].append((example, tuple(numbers[:4])))

    def compare(self) -> None:
        """Compare all samples with each other; to be called once, after all were added."""
        content = np.array(self.content, np.uint64)
        same = list(_equal(content))
        copies = {number for group_ in same for number in group_[1:]}
        singles = np.array([n for n in range(len(content)) if content[n] and n not in copies], np.int64)
        colors = np.frombuffer(self.colors, np.uint8).reshape(-1, 48)
        components = group(near_pairs(np.array(self.perceptual, np.uint64)[singles], colors[singles]))
        self._note_groups(same, "duplicate image", "same image in two splits")
        near = (singles[numbers].tolist() for numbers in components)
        self._note_groups(near, "near-duplicate image", "near-duplicate in two splits")
        owners = (sorted({self.owners[n] for n in numbers}) for numbers in _equal(np.array(self.texts, np.uint64)))
        self._note_groups(owners, "same text on several images", "same text in two splits")

    def findings(self) -> tuple[Finding, ...]:
        """Return all findings, in the order of ``ADVICE``."""
        names = sorted(self.counts, key=list(ADVICE).index)
        return tuple(Finding(name, self.counts[name], tuple(text for text, _ in self.examples[name])) for name in names)

    def part(self, number: int) -> Part:
        """Return the tar of sample ``number``."""
        return self.parts[bisect_right(self.parts, number, key=lambda part: part.first) - 1]

    def key(self, number: int) -> str:
        """Return the key of sample ``number``."""
        part = self.part(number)
        return part.shards.key(number - part.first)

    def title(self, number: int) -> str:
        """Return the key of sample ``number``, with its original name and the fields that ``prepare --keep`` stored."""
        part, key = self.part(number), self.key(number)
        with suppress(BrokenSample):
            if kept := part.shards[number - part.first].kept:
                name, *fields = kept.items()
                return f"{key} ({', '.join((str(name[1]), *(f'{field} {value}' for field, value in fields)))})"
        return key

    def _note_groups(self, groups: Iterable[Sequence[int]], within: str, across: str) -> None:
        """Note groups with several members in one split as ``within``, and those in several splits as ``across``."""
        for numbers in groups:
            by_split: dict[str, list[int]] = defaultdict(list)
            for number in numbers:
                by_split[self.part(number).split].append(number)
            for members in by_split.values():
                if len(members) > 1:
                    self.note(within, members, count=len(members) - 1)
            if len(by_split) > 1:
                firsts = [members[0] for members in by_split.values()]
                self.note(across, firsts)


def _equal(values: np.ndarray) -> Iterator[list[int]]:
    """Return the groups of positions with equal ``values`` (N,); 0 is ignored."""
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.diff(values[order])) + 1
    runs = zip(np.append(0, ends).tolist(), np.append(ends, len(order)).tolist(), strict=True)
    groups = [order[start:end].tolist() for start, end in runs if end - start > 1 and values[order[start]]]
    return iter(sorted(groups))
