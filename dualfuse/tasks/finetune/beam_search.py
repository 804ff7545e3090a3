"""Beam search: the likeliest texts, found by keeping a few beginnings of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dualfuse.errors import DualfuseError

NEVER = float("-inf")
Step = Callable[[Tensor, Tensor], Tensor]
"""Gives log-probabilities (R, V) of what follows ids (R, t), R texts that begin with the rows (R,) of the last call;
in the first call these are the numbers of the images."""


@dataclass(frozen=True)
class Beam:
    """How texts are searched for."""

    width: int
    """Beginnings that are kept for each image."""
    length_penalty: float
    """Texts are compared by log-probability / length ** this; the more, the longer. 0: by log-probability."""
    longest: int
    """Most tokens of a text, the start and the end counted."""
    start: int
    end: int
    """The tokens of those names."""

    def __post_init__(self) -> None:
        """Refuse a search that finds nothing."""
        if self.width < 1 or self.length_penalty < 0 or self.longest < 2:
            raise DualfuseError(
                f"beam is {self.width}, length_penalty {self.length_penalty:g}, the longest text {self.longest} "
                "tokens; give at least 1, at least 0, and at least 2"
            )

    def score(self, log_probability: Tensor, length: int) -> Tensor:
        """Return what texts of ``length`` tokens, the end counted and the start not, are compared by."""
        return log_probability / length**self.length_penalty


@dataclass(frozen=True)
class Hypothesis:
    """A text without start and end, its log-probability, and what it is compared by."""

    ids: tuple[int, ...]
    log_probability: float
    score: float


def beam_search(step: Step, images: int, beam: Beam, device: torch.device | None = None) -> list[list[Hypothesis]]:
    """Return the best texts of each image, best first, at most ``beam.width``.

    As usual a text is found when its end is among the ``width`` likeliest continuations of all its beginnings. The
    search stops when no beginning can become better than what is found; what has no end when it is longest is
    compared as it is.
    """
    width = beam.width
    ids = torch.full((images, width, 1), beam.start, device=device)
    rows = torch.arange(images, device=device)[:, None]  # of images
    origin = rows.expand(-1, width)
    total = torch.full((images, width), NEVER, device=device)
    total[:, 0] = 0.0  # all beginnings are one at first
    found: list[list[Hypothesis]] = [[] for _ in range(images)]
    for length in range(1, beam.longest):
        following = total[..., None] + step(ids.flatten(0, 1), origin.flatten()).unflatten(0, (images, width))
        vocabulary = following.shape[2]
        best, place = following.flatten(1).topk(min(2 * width, width * vocabulary))
        parent, is_end = place // vocabulary, place % vocabulary == beam.end
        ended = best.where(is_end, NEVER)[:, :width]
        _collect(found, ids[rows, parent[:, :width]], ended, length, beam)
        total, kept = best.where(~is_end, NEVER).topk(width)
        parent, token = parent.gather(1, kept), (place % vocabulary).gather(1, kept)
        ids, origin = torch.cat([ids[rows, parent], token[..., None]], dim=2), rows * width + parent
        if _are_settled(found, total, beam):
            return found
    _collect(found, ids, total, beam.longest - 1, beam)
    return found


def _collect(found: list[list[Hypothesis]], ids: Tensor, total: Tensor, length: int, beam: Beam) -> None:
    """Add the texts ids (B, K, t) whose log-probabilities ``total`` (B, K) are finite, and keeps the best ones."""
    scores = beam.score(total, length)
    for image, place in total.isfinite().nonzero().tolist():
        text = tuple(ids[image, place, 1:].tolist())
        found[image].append(Hypothesis(text, float(total[image, place]), float(scores[image, place])))
        found[image] = sorted(found[image], key=lambda each: -each.score)[: beam.width]


def _are_settled(found: Sequence[Sequence[Hypothesis]], total: Tensor, beam: Beam) -> bool:
    """Whether no beginning can become better: log-probability only falls, and the longest text loses least by it."""
    bounds = beam.score(total, beam.longest - 1).amax(1).tolist()
    return all(
        len(texts) == beam.width and texts[-1].score >= bound for texts, bound in zip(found, bounds, strict=True)
    )
