"""Questions, their targets, and accuracies of predicted answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

IDENTIFIER = re.compile(r"(?P<split>[^-]+)-(?P<set>\d+)-(?P<pair>\d+)-(?P<sentence>\d+)")
"""An identifier of NLVR2."""


@dataclass(frozen=True)
class Question:
    """A text about images, and its target."""

    key: str
    """Key of the sample."""
    id: str | int
    """Identifier of the question in its data set: "id" in the sample's json, or else the key."""
    text: str
    target: tuple[str, ...] = ()
    """The correct answer, or all answers that annotators gave; empty in unlabelled sets, such as test sets."""
    kind: str = ""
    """Type of the question, for accuracies per type: "answer_type" in the sample's json."""


class Metric(Protocol):
    """Accumulates counts over questions."""

    def add(self, question: Question, answers: Sequence[str]) -> None:
        """Count the ``answers``, best first, to a question with a target."""
        ...

    def result(self) -> dict[str, float]:
        """Return shares of one by name; empty if nothing was added."""
        ...


class Accuracy:
    """The share of correct answers, over all questions and per label."""

    def __init__(self) -> None:
        """Start with zero counts."""
        self._all: Counter[str] = Counter()
        self._correct: Counter[str] = Counter()

    def add(self, question: Question, answers: Sequence[str]) -> None:
        """Count the best answer."""
        [label] = question.target
        self._all[label] += 1
        self._correct[label] += answers[0] == label

    def result(self) -> dict[str, float]:
        """Return "accuracy", and "accuracy/LABEL" for every label."""
        if not self._all:
            return {}
        by_label = {f"accuracy/{label}": self._correct[label] / self._all[label] for label in sorted(self._all)}
        return {"accuracy": self._correct.total() / self._all.total()} | by_label


class TopAccuracy:
    """The share of questions whose target is the best answer, and that whose target is among the best five."""

    def __init__(self) -> None:
        """Start with zero counts."""
        self._all = self._first = self._five = 0

    def add(self, question: Question, answers: Sequence[str]) -> None:
        """Count the five best answers."""
        [label] = question.target
        self._all += 1
        self._first += label == answers[0]
        self._five += label in answers[:5]

    def result(self) -> dict[str, float]:
        """Return "accuracy" and "accuracy/top5"."""
        return {"accuracy": self._first / self._all, "accuracy/top5": self._five / self._all} if self._all else {}


class Consistency(Accuracy):
    """Accuracy, and NLVR2's consistency: the share of sentences answered correctly for all their image pairs."""

    def __init__(self) -> None:
        """Start with zero counts."""
        super().__init__()
        self._consistent: dict[tuple[str, ...], bool] = {}

    def add(self, question: Question, answers: Sequence[str]) -> None:
        """Count the best answer."""
        super().add(question, answers)
        sentence = _sentence(question)
        self._consistent[sentence] = self._consistent.get(sentence, True) and (answers[0],) == question.target

    def result(self) -> dict[str, float]:
        """Return the accuracies and "consistency"."""
        if not self._consistent:
            return {}
        return super().result() | {"consistency": sum(self._consistent.values()) / len(self._consistent)}


def _sentence(question: Question) -> tuple[str, ...]:
    """Return NLVR2's identifier SPLIT-SET-PAIR-SENTENCE without the pair; for another identifier, the text."""
    match = IDENTIFIER.fullmatch(str(question.id))
    return match.group("split", "set", "sentence") if match else (question.text,)
