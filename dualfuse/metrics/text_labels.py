"""Metrics of labelled texts: those of GLUE (arXiv 1804.07461, Table 1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dualfuse.metrics.accuracy import Metric, Question


class LabelMetrics(Metric):
    """Accuracy, Matthews correlation and, for two labels, the F1 score of the second one."""

    def __init__(self, names: Sequence[str]) -> None:
        """``names`` are the labels in the order of their indices."""
        super().__init__()
        self._names, self._pairs = tuple(names), Counter[tuple[str, str]]()

    def scores(self, question: Question, answers: Sequence[str]) -> dict[str, float]:
        """Compare the best answer."""
        [label] = question.target
        return {"accuracy": float(answers[0] == label)}

    def add(self, question: Question, answers: Sequence[str]) -> None:
        """Count the best answer."""
        super().add(question, answers)
        self._pairs[question.target[0], answers[0]] += 1

    def result(self) -> dict[str, float]:
        """Return "accuracy", "matthews_correlation" and "f1"; empty if nothing was added."""
        if not self._pairs:
            return {}
        table = np.array([[self._pairs[row, column] for column in self._names] for row in self._names], np.float64)
        result = super().result() | {"matthews_correlation": matthews_correlation(table)}
        return result | ({"f1": f1(table)} if len(self._names) == 2 else {})


class ScoreMetrics(Metric):
    """Pearson and Spearman correlation of predicted numbers, and their mean squared error."""

    def __init__(self) -> None:
        """Start without numbers."""
        super().__init__()
        self._targets: list[float] = []
        self._predicted: list[float] = []

    def scores(self, question: Question, answers: Sequence[str]) -> dict[str, float]:
        """Return the squared error."""
        return {"mse": (float(answers[0]) - float(question.target[0])) ** 2}

    def add(self, question: Question, answers: Sequence[str]) -> None:
        """Add the target and the prediction, written as numbers."""
        super().add(question, answers)
        self._targets.append(float(question.target[0]))
        self._predicted.append(float(answers[0]))

    def result(self) -> dict[str, float]:
        """Return "pearson", "spearman" and "mse"; empty if nothing was added."""
        if not self._targets:
            return {}
        targets, predicted = np.array(self._targets), np.array(self._predicted)
        correlations = {"pearson": pearson(targets, predicted), "spearman": pearson(ranks(targets), ranks(predicted))}
        return super().result() | correlations


def matthews_correlation(table: np.ndarray) -> float:
    """Return the Matthews correlation of counts (C, C), targets by predictions (Gorodkin 2004); 0 if undefined."""
    total, targets, predicted = table.sum(), table.sum(1), table.sum(0)
    covariance = table.trace() * total - targets @ predicted
    spread = (total**2 - predicted @ predicted) * (total**2 - targets @ targets)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def f1(table: np.ndarray) -> float:
    """Return the F1 score of the second label, from counts (2, 2), targets by predictions; 0 without any."""
    positives = table[1].sum() + table[:, 1].sum()
    return float(2 * table[1, 1] / positives) if positives else 0.0


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Return the correlation of two arrays (N,); 0 if one is constant."""
    x, y = x - x.mean(), y - y.mean()
    spread = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / spread) if spread > 0 else 0.0


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks (N,) of values (N,) from 1; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[group]
