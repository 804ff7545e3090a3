"""What was asked, what was answered, and how often that was right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Question:
    """One text about its images, and what is known of the right answer."""

    key: str
    """Of the sample."""
    id: str | int
    """How the data set calls it: "id" of the sample's json; or else the key."""
    text: str
    target: tuple[str, ...] = ()
    """The right answer, or those that people gave; empty: not known, as in test sets."""
    kind: str = ""
    """By which answers are judged apart: "answer_type" of the sample's json."""


class Metric(Protocol):
    """Counts answers one by one, so that no more than the counts is held."""

    def add(self, asked: Question, answers: Sequence[str]) -> None:
        """Take the answers to a question whose truth is known, best first; one at least."""
        ...

    def result(self) -> dict[str, float]:
        """Return shares of one by name; none if nothing was added."""
        ...


class Accuracy:
    """The share of right answers, over all and over those of each true label."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self._all: Counter[str] = Counter()
        self._right: Counter[str] = Counter()

    def add(self, asked: Question, answers: Sequence[str]) -> None:
        """Count the best answer."""
        [label] = asked.target
        self._all[label] += 1
        self._right[label] += answers[0] == label

    def result(self) -> dict[str, float]:
        """Return "accuracy", and "accuracy/LABEL" for every label."""
        if not self._all:
            return {}
        by_label = {f"accuracy/{label}": self._right[label] / self._all[label] for label in sorted(self._all)}
        return {"accuracy": self._right.total() / self._all.total()} | by_label


class TopAccuracy:
    """The share of questions whose right answer is the best one, and is among the best five."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self._all = self._first = self._five = 0

    def add(self, asked: Question, answers: Sequence[str]) -> None:
        """Count the five best answers."""
        [label] = asked.target
        self._all += 1
        self._first += label == answers[0]
        self._five += label in answers[:5]

    def result(self) -> dict[str, float]:
        """Return "accuracy" and "accuracy/top5"."""
        return {"accuracy": self._first / self._all, "accuracy/top5": self._five / self._all} if self._all else {}
