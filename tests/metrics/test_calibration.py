"""Calibration against naive formulas: ECE and Brier score by loops, Platt scaling on data of a known sigmoid."""

from __future__ import annotations

import math

import pytest
import torch

from dualfuse.config import from_json, to_json
from dualfuse.metrics.calibration import (
    BINS,
    Calibration,
    Platt,
    ScoreCalibration,
    brier_score,
    expected_calibration_error,
    fit_platt,
    reliability,
)


def naive_ece(probability: list[float], target: list[float], weight: list[float]) -> float:
    error = 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = [n for n, p in enumerate(probability) if low <= p < high or (p == 1 and number == BINS - 1)]
        mass = sum(weight[n] for n in inside)
        if mass:
            confidence = sum(weight[n] * probability[n] for n in inside) / mass
            right = sum(weight[n] * target[n] for n in inside) / mass
            error += mass / sum(weight) * abs(confidence - right)
    return error


def test_errors_equal_naive_formulas() -> None:
    generator = torch.Generator().manual_seed(3)
    probability = torch.cat([torch.rand(200, generator=generator), torch.tensor([0.0, 1.0])])
    target = (torch.rand(202, generator=generator) < 0.4).float()
    weight = torch.rand(202, generator=generator)
    expected = naive_ece(probability.tolist(), target.tolist(), weight.tolist())
    assert expected_calibration_error(probability, target, weight) == pytest.approx(expected, abs=1e-6)
    terms = [w * (p - t) ** 2 for p, t, w in zip(probability.tolist(), target.tolist(), weight.tolist(), strict=True)]
    assert brier_score(probability, target, weight) == pytest.approx(sum(terms) / float(weight.sum()), abs=1e-6)
    assert sum(each.share for each in reliability(probability, target)) == pytest.approx(1)


def test_platt_finds_the_sigmoid_that_made_the_targets() -> None:
    score = torch.linspace(-0.2, 0.6, 4001)
    chance = 1 / (1 + torch.exp(-(12 * score - 3)))
    both = torch.cat([score, score])
    target = torch.cat([torch.ones(4001), torch.zeros(4001)])  # each score right with weight p, wrong with 1 - p
    fitted = fit_platt(both, target, torch.cat([chance, 1 - chance]))
    assert fitted.weight == pytest.approx(12, rel=0.01)
    assert fitted.bias == pytest.approx(-3, rel=0.01)


def test_separable_scores_stay_finite_and_reversed_ones_keep_their_order() -> None:
    score, target = torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    separable = fit_platt(score, target, torch.ones(4))
    assert 0.5 < separable.probability(0.9) < 1
    assert fit_platt(score, 1 - target, torch.ones(4)).weight > 0


def test_threshold_keeps_its_share_and_probability_has_an_inverse() -> None:
    platt = Platt(9.0, -2.0)
    assert platt.score(platt.probability(0.37)) == pytest.approx(0.37)
    assert platt.probability(torch.tensor(0.37)).item() == pytest.approx(platt.probability(0.37), abs=1e-6)
    assert (platt.probability(-1e4), platt.score(0.0), platt.score(1.0)) == (0.0, -math.inf, math.inf)
    calibration = ScoreCalibration(platt, platt, tuple(number / 100 for number in range(101)))
    assert calibration.kept(calibration.threshold(0.95)) == pytest.approx(0.95, abs=0.01)


def test_json_round_trip_and_numbers_from_files_are_checked() -> None:
    fitted = ScoreCalibration(Platt(2.0, 1.0), Platt(3.0, -1.0), (0.1, 0.2))
    calibration = Calibration(fitted, None, texts=4)
    assert from_json(to_json(calibration)) == calibration
    with pytest.raises(ValueError, match="weight -1"):
        Platt(-1.0, 0.0)
