"""Probabilities from scores: Platt scaling, and how well a probability agrees with the share that is right."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15
"""Bins of equal width of the expected calibration error (Guo et al. 2017, section 2)."""
KEPT = 0.95
"""Share of right pairs of the calibration set above the threshold that cards and evaluations name."""
Score = TypeVar("Score", float, Tensor)


@dataclass(frozen=True)
class Platt:
    """sigmoid(``weight`` * score + ``bias``), with a positive weight, so that the order of scores is kept."""

    weight: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        """Validate the numbers, which may come from a file."""
        if not (0 < self.weight < math.inf and math.isfinite(self.bias)):
            raise ValueError(f"weight {self.weight} and bias {self.bias}: not a positive and a finite number")

    def probability(self, score: Score) -> Score:
        """Return the probability of a score, or of each score of a tensor."""
        logit = self.weight * score + self.bias
        if isinstance(logit, Tensor):
            return logit.sigmoid()
        return 0.5 * (1 + math.tanh(logit / 2))  # does not overflow

    def score(self, probability: float) -> float:
        """Return the score that has a probability, 0 to 1; the inverse of :meth:`probability`."""
        if probability <= 0 or probability >= 1:
            return -math.inf if probability <= 0 else math.inf
        return (math.log(probability / (1 - probability)) - self.bias) / self.weight


@dataclass(frozen=True)
class ScoreCalibration:
    """Probabilities of one kind of score: the cosine, or the score of the fusion encoder."""

    pair: Platt
    """Of an image and a text that are given: they match."""
    hit: Platt
    """Of an image that a search returned: it is the one that the text describes."""
    right: tuple[float, ...]
    """The scores of right pairs in the calibration set at 101 shares, from the lowest to the highest."""
    pair_error: float = 0.0
    """Expected calibration error of ``pair`` on the calibration set."""
    hit_error: float = 0.0
    """Expected calibration error of ``hit`` on the calibration set."""

    def kept(self, score: float) -> float:
        """Return the share of right pairs whose score is at least ``score``."""
        return sum(each >= score for each in self.right) / max(1, len(self.right))

    def threshold(self, share: float) -> float:
        """Return the score that a ``share`` of right pairs reaches, 0 to 1."""
        return self.right[round((1 - share) * (len(self.right) - 1))]


@dataclass(frozen=True)
class Mix:
    """Shares of pairs that the probability of a pair assumes: right ones, and random and hard wrong ones."""

    right: float = 0.5
    random: float = 0.4375
    hard: float = 0.0625
    nearest: int = 16
    """Number of hits of each text that hard negative pairs and the probability of a hit are drawn from."""


@dataclass(frozen=True)
class Calibration:
    """How scores of a model become probabilities, and the pairs that this was measured on."""

    cosine: ScoreCalibration
    match: ScoreCalibration | None = None
    """Of the score that re-ranking sorts by; None: the model has no fusion encoder."""
    mix: Mix = field(default_factory=Mix)
    texts: int = 0
    """Texts of the calibration set: each gives one right pair, two wrong ones and ``mix.nearest`` hits."""
    images: int = 0
    seed: int = 0
    data: str = ""
    """Digest of the calibration set."""


def fit_platt(score: Tensor, target: Tensor, weight: Tensor) -> Platt:
    """Return the scale and bias with the lowest weighted negative log-likelihood, by L-BFGS (Platt 1999).

    ``score``, ``target`` (True: right) and ``weight`` are (N,). Targets are smoothed as Platt's are, so that separable
    scores do not lead to infinite weights. Scores that do not rise with the target give the weight 1e-6.
    """
    score, target, weight = (each.detach().double().cpu() for each in (score, target, weight))
    mean, deviation = score.mean(), score.std().clamp(min=1e-12)
    right, wrong = target.sum(), (1 - target).sum()
    smooth = torch.where(target > 0, (right + 1) / (right + 2), 1 / (wrong + 2))
    standard = (score - mean) / deviation
    with torch.inference_mode(False), torch.enable_grad():
        standard, smooth, weight = standard.clone(), smooth.clone(), weight.clone()
        parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            logits = parameters[0] * standard + parameters[1]
            losses = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
            loss = (weight * losses).sum() / weight.sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    scale, bias = parameters.detach().tolist()
    slope = max(scale / float(deviation), 1e-6)
    return Platt(slope, bias - slope * float(mean))


@dataclass(frozen=True)
class ReliabilityBin:
    """The pairs whose probability lies in one bin: their share of all, mean probability, and share that is right."""

    share: float
    probability: float
    right: float


def reliability(probability: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[ReliabilityBin, ...]:
    """Return the occupied ones of ``BINS`` bins of equal width; all tensors are (N,), ``weight`` defaults to ones."""
    weight = torch.ones_like(probability) if weight is None else weight
    probability, target, weight = (each.double().cpu() for each in (probability, target, weight))
    number = (probability * BINS).long().clamp(max=BINS - 1)

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(BINS, dtype=torch.float64).index_add_(0, number, values)

    mass, confidence, right = summed(weight), summed(weight * probability), summed(weight * target)
    columns = zip(mass.tolist(), confidence.tolist(), right.tolist(), strict=True)
    total = float(mass.sum())
    return tuple(ReliabilityBin(size / total, sum_ / size, good / size) for size, sum_, good in columns if size)


def expected_calibration_error(probability: Tensor, target: Tensor, weight: Tensor | None = None) -> float:
    """Return the mean distance between the probability and the share that is right, over ``BINS`` bins (ECE)."""
    return sum(each.share * abs(each.probability - each.right) for each in reliability(probability, target, weight))


def brier_score(probability: Tensor, target: Tensor, weight: Tensor | None = None) -> float:
    """Return the weighted mean of (probability - target)^2 (Brier 1950)."""
    weight = torch.ones_like(probability) if weight is None else weight
    return float((weight * (probability - target.to(probability)) ** 2).sum() / weight.sum())
