"""Calibration of a model on a set: which probability its scores stand for, and how far off that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dualfuse.data.map_dataset import MapDataset
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.retrieval import Gallery, TextBatch
from dualfuse.evaluation.runner import EvaluationData, Plan, open_data
from dualfuse.metrics.base import MetricInfo, shares
from dualfuse.metrics.calibration import (
    KEPT,
    Calibration,
    Mix,
    ReliabilityBin,
    ScoreCalibration,
    brier_score,
    expected_calibration_error,
    fit_platt,
    reliability,
)
from dualfuse.metrics.recall import BLOCK

if TYPE_CHECKING:
    from dualfuse.hub import LoadedModel
    from dualfuse.tasks.base import Task

SAME = 1 - 1e-5
"""Cosine from which two images count as the same one."""


@dataclass(frozen=True)
class Scores:
    """Scores of one kind: of positive, random and hard negative pairs (M, 3), and of the hits of M texts (M, K)."""

    pairs: Tensor
    hits: Tensor


@dataclass(frozen=True)
class CalibrationScores:
    """What a calibration is fitted to, or measured on."""

    cosine: Scores
    match: Scores | None
    is_right: Tensor
    """Whether each hit (M, K) shows what its text describes: its own image, an equal one, or one with that text."""
    images: int
    data: str


@torch.inference_mode()
def calibration_scores(task: Task, data: EvaluationData, plan: Plan, *, mix: Mix, seed: int = 0) -> CalibrationScores:
    """Return the scores of positive pairs, drawn negative pairs and hits, for each text of a set.

    Raises DualfuseError if ITC was not trained, or if no text has a wrong image.
    """
    gallery = Gallery(task, data, plan)
    image, text, texts, owner = gallery.features()
    pairs, hits, is_right, has_wrong = _candidates(image, text, texts, owner, mix.nearest, seed)
    if not has_wrong.any():
        raise DualfuseError(
            f"{len(image)} images and {len(text)} texts have no negative pair; calibrate on a larger set"
        )
    every = torch.cat([pairs, hits], dim=1)
    cosine = torch.cat(
        [(one[:, None] * image[some]).sum(2) for one, some in zip(text.split(BLOCK), every.split(BLOCK), strict=True)]
    ).float()
    match = None
    if task.can_match:
        none = torch.zeros(len(image), 0, dtype=torch.long)
        match = task.rerank_score(cosine, gallery.pair_scores(every, none, texts)[0])

    def split(scores: Tensor) -> Scores:
        return Scores(scores[has_wrong, :3].cpu(), scores[has_wrong, 3:].cpu())

    matched = None if match is None else split(match)
    return CalibrationScores(split(cosine), matched, is_right[has_wrong].cpu(), len(image), _digest(data))


def _candidates(
    image: Tensor, text: Tensor, texts: TextBatch, owner: Tensor, nearest: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return for each text its right, a random wrong and a hard wrong image (M, 3), and its hits (M, K).

    Also returned: which hits are right (M, K), and whether a text has a wrong image (M,).
    """
    generator = torch.Generator().manual_seed(seed)
    text_id = texts.ids.masked_fill(~texts.mask, -1).unique(dim=0, return_inverse=True)[1].to(owner)
    blocks = []
    for one, number, same in zip(text.split(BLOCK), owner.split(BLOCK), text_id.split(BLOCK), strict=True):
        similarity = one @ image.T
        shares_text = torch.zeros_like(similarity).index_add_(1, owner, (same[:, None] == text_id).to(similarity)) > 0
        right = shares_text | (image[number] @ image.T > SAME)
        hits = similarity.topk(min(nearest, len(image)), dim=1).indices
        is_right = right.gather(1, hits)
        noise = torch.rand(similarity.shape, generator=generator).to(similarity).masked_fill(right, -1)
        random = noise.argmax(1)
        noise = torch.rand(hits.shape, generator=generator).to(similarity).masked_fill(is_right, -1)
        hard = torch.where(is_right.all(1), random, hits.gather(1, noise.argmax(1, keepdim=True))[:, 0])
        blocks.append((torch.stack([number, random, hard], dim=1), hits, is_right, ~right.all(1)))
    pairs, hits, is_right, has_wrong = (torch.cat(column) for column in zip(*blocks, strict=True))
    return pairs, hits, is_right, has_wrong


def _digest(data: EvaluationData) -> str:
    names = sorted(data.samples.digests().values()) if isinstance(data.samples, MapDataset) else []
    return sha256("\n".join(names).encode()).hexdigest()[:16] if names else ""


def calibrate_model(model: LoadedModel, data: str, plan: Plan) -> Calibration:
    """Calibrate a model on the shards ``data``; return the calibration, which the model's task uses from then on."""
    model.task.check_search()
    model.task.calibration = calibrate(model.task, open_data(model, data), plan)
    return model.task.calibration


def calibrate(task: Task, data: EvaluationData, plan: Plan, seed: int = 0) -> Calibration:
    """Return the calibration of a task's scores on a set, such as the validation set.

    The same set, model and ``seed`` give the same calibration. Raises DualfuseError as :func:`calibration_scores` does.
    """
    mix = Mix()
    scores = calibration_scores(task, data, plan, mix=mix, seed=seed)
    cosine = _fit(scores.cosine, scores.is_right, mix)
    match = None if scores.match is None else _fit(scores.match, scores.is_right, mix)
    return Calibration(cosine, match, mix, len(scores.is_right), scores.images, seed, scores.data)


def _fit(scores: Scores, is_right: Tensor, mix: Mix) -> ScoreCalibration:
    target, weight = _of_pairs(scores, mix)
    pair = fit_platt(scores.pairs.flatten(), target, weight)
    hit = fit_platt(scores.hits.flatten(), is_right.flatten(), torch.ones(is_right.numel()))
    right = torch.quantile(scores.pairs[:, 0].double(), torch.linspace(0, 1, 101, dtype=torch.float64)).tolist()
    fitted = ScoreCalibration(pair, hit, tuple(right))
    errors = _errors(scores, is_right, fitted, mix)
    return replace(fitted, pair_error=errors["ece_pair"], hit_error=errors["ece_hit"])


def _of_pairs(scores: Scores, mix: Mix) -> tuple[Tensor, Tensor]:
    """Return target and weight (M * 3,) of the flattened pairs."""
    target = torch.tensor([1.0, 0.0, 0.0]).expand_as(scores.pairs)
    weight = torch.tensor([mix.right, mix.random, mix.hard]).expand_as(scores.pairs)
    return target.flatten(), weight.flatten()


def _errors(scores: Scores, is_right: Tensor, fitted: ScoreCalibration, mix: Mix) -> dict[str, float]:
    target, weight = _of_pairs(scores, mix)
    pair, hit = fitted.pair.probability(scores.pairs.flatten()), fitted.hit.probability(scores.hits)
    kept = scores.pairs[:, 0] >= fitted.threshold(KEPT)
    return {
        "ece_pair": expected_calibration_error(pair, target, weight),
        "ece_hit": expected_calibration_error(hit.flatten(), is_right.flatten()),
        "ece_first_hit": expected_calibration_error(
            hit.max(1).values, is_right.gather(1, hit.argmax(1)[:, None])[:, 0]
        ),
        "brier_pair": brier_score(pair, target, weight),
        "kept_right": kept.float().mean().item(),
    }


@dataclass(frozen=True)
class CalibrationResult:
    """How far the stored probabilities are off on another set."""

    metrics: Mapping[str, float]
    curves: Mapping[str, tuple[ReliabilityBin, ...]]
    """Reliability of the probability of a pair, by the kind of score."""


def measure_calibration(task: Task, data: EvaluationData, plan: Plan) -> CalibrationResult:
    """Return the errors of a task's stored calibration on a set, which should not be the one that it was fitted to.

    For each of "cosine" and "match":

    - "calibration/KIND/ece_pair", "ece_hit": expected calibration error of the probability of a pair, in the stored mix
      of pairs, and of a hit. "ece_first_hit": the same for the most probable hit of each text alone.
    - "calibration/KIND/brier_pair": Brier score of the probability of a pair.
    - "calibration/KIND/kept_right": right pairs above the threshold that keeps 95 % of those of the calibration set.
    """
    stored = task.calibration
    assert stored is not None  # callers ask
    scores = calibration_scores(task, data, plan, mix=stored.mix, seed=stored.seed)
    metrics, curves = dict[str, float](), dict[str, tuple[ReliabilityBin, ...]]()
    for name, of_kind, fitted in (("cosine", scores.cosine, stored.cosine), ("match", scores.match, stored.match)):
        if of_kind is None or fitted is None:
            continue
        errors = _errors(of_kind, scores.is_right, fitted, stored.mix)
        metrics |= {f"calibration/{name}/{key}": value for key, value in errors.items()}
        target, weight = _of_pairs(of_kind, stored.mix)
        curves[name] = reliability(fitted.pair.probability(of_kind.pairs.flatten()), target, weight)
    return CalibrationResult(metrics, curves)


def calibration_infos() -> tuple[MetricInfo, ...]:
    """Declare the metrics of :func:`measure_calibration`."""
    errors = ("ece_pair", "ece_hit", "ece_first_hit", "brier_pair")
    lower = (MetricInfo(f"calibration/*/{name}", higher_is_better=False) for name in errors)
    return (*lower, *shares("calibration/*/kept_right"))
