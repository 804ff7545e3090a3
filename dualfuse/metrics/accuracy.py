"""Questions, their targets, and accuracies of predicted answers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

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


class Metric(ABC):
    """Means of named scores over questions."""

    def __init__(self) -> None:
        """Start with zero counts."""
        self._sums: dict[str, float] = {}
        self._counts: Counter[str] = Counter()

    @abstractmethod
    def scores(self, question: Question, answers: Sequence[str]) -> dict[str, float]:
        """Return the scores, from 0 to 1, of the ``answers``, best first, to a question with a target."""

    def add(self, question: Question, answers: Sequence[str]) -> None:
        """Count the ``answers``, best first, to a question with a target."""
        for name, score in self.scores(question, answers).items():
            self._sums[name] = self._sums.get(name, 0.0) + score
            self._counts[name] += 1

    def result(self) -> dict[str, float]:
        """Return shares of one by name; empty if nothing was added."""
        return {name: self._sums[name] / self._counts[name] for name in sorted(self._sums)}


class Accuracy(Metric):
    """The share of correct answers: "accuracy" over all questions, and "accuracy/LABEL" for every label."""

    def scores(self, question: Question, answers: Sequence[str]) -> dict[str, float]:
        """Compare the best answer."""
        [label] = question.target
        return dict.fromkeys(("accuracy", f"accuracy/{label}"), float(answers[0] == label))


class TopAccuracy(Metric):
    """The share of questions whose target is the best answer, and "accuracy/top5": one of the best five."""

    def scores(self, question: Question, answers: Sequence[str]) -> dict[str, float]:
        """Compare the five best answers."""
        [label] = question.target
        return {"accuracy": float(label == answers[0]), "accuracy/top5": float(label in answers[:5])}


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
