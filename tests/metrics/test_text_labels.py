"""The metrics of GLUE equal those of scipy, or the formula by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dualfuse.metrics.accuracy import Question
from dualfuse.metrics.text_labels import LabelMetrics, ScoreMetrics

stats = pytest.importorskip("scipy.stats")


def measured(metric: LabelMetrics | ScoreMetrics, targets: list[str], predicted: list[str]) -> dict[str, float]:
    for number, (target, answer) in enumerate(zip(targets, predicted, strict=True)):
        metric.add(Question(str(number), number, "", (target,)), [answer])
    return metric.result()


def test_two_labels() -> None:
    rng = np.random.default_rng(0)
    targets, predicted = rng.integers(0, 2, 50), rng.integers(0, 2, 50)
    found = measured(LabelMetrics(("0", "1")), list(map(str, targets)), list(map(str, predicted)))
    both = int(((targets == 1) & (predicted == 1)).sum())
    precision, recall = both / (predicted == 1).sum(), both / (targets == 1).sum()
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["accuracy"] == pytest.approx((targets == predicted).mean())
    assert found["matthews_correlation"] == pytest.approx(stats.pearsonr(targets, predicted)[0])  # of two labels: phi


def test_three_labels_by_hand() -> None:
    """Targets a a b c, predictions a b b c: Gorodkin's correlation is (3 * 4 - 5) / sqrt((16 - 6) * (16 - 6))."""
    found = measured(LabelMetrics(("a", "b", "c")), ["a", "a", "b", "c"], ["a", "b", "b", "c"])
    assert found == pytest.approx({"accuracy": 0.75, "matthews_correlation": (3 * 4 - 5) / 10})


def test_constant_predictions_correlate_with_nothing() -> None:
    found = measured(LabelMetrics(("0", "1")), ["0", "1", "0"], ["0", "0", "0"])
    assert (found["matthews_correlation"], found["f1"]) == (0.0, 0.0)
    assert LabelMetrics(("0", "1")).result() == ScoreMetrics().result() == {}


def test_numbers_equal_scipy_with_ties() -> None:
    rng = np.random.default_rng(1)
    targets, predicted = rng.integers(0, 6, 40) / 2, np.round(rng.normal(size=40), 1)
    found = measured(ScoreMetrics(), list(map(str, targets)), list(map(str, predicted)))
    assert found["pearson"] == pytest.approx(stats.pearsonr(targets, predicted)[0])
    assert found["spearman"] == pytest.approx(stats.spearmanr(targets, predicted)[0])
    assert found["mse"] == pytest.approx(((targets - predicted) ** 2).mean())
