"""Beam search for the most probable texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dualfuse.errors import DualfuseError

NEVER = float("-inf")
Step = Callable[[Tensor, Tensor], Tensor]
"""Return log-probabilities (R, V) of the next token of texts ids (R, t), which extend the rows (R,) of the last call;
in the first call these are the indices of the images."""


@dataclass(frozen=True)
class Beam:
    """Options of the search."""

    width: int
    """Hypotheses kept per image."""
    length_penalty: float
    """Exponent of the length by which log-probabilities are divided; larger values prefer longer texts."""
    longest: int
    """Maximum number of tokens, start and end included."""
    start: int
    end: int
    """Ids of the start and end tokens."""

    def __post_init__(self) -> None:
        """Validate the options."""
        if self.width < 1 or self.length_penalty < 0 or self.longest < 2:
            raise DualfuseError(
                f"beam is {self.width}, length_penalty {self.length_penalty:g}, the maximum length {self.longest} "
                "tokens; give at least 1, at least 0, and at least 2"
            )

    def score(self, log_probability: Tensor, length: int) -> Tensor:
        """Return the scores of texts of ``length`` tokens, end included and start excluded."""
        return log_probability / length**self.length_penalty


@dataclass(frozen=True)
class Hypothesis:
    """A text without start and end tokens, its log-probability and its score."""

    ids: tuple[int, ...]
    log_probability: float
    score: float


def beam_search(step: Step, images: int, beam: Beam, device: torch.device | None = None) -> list[list[Hypothesis]]:
    """Return the best texts of each image, best first, at most ``beam.width``.

    A text is complete when its end token is among the ``width`` best continuations of all hypotheses of the image. The
    search stops when no hypothesis can become better than the complete texts; hypotheses of maximum length are
    complete without an end token.
    """
    width = beam.width
    ids = torch.full((images, width, 1), beam.start, device=device)
    rows = torch.arange(images, device=device)[:, None]  # indices of the images
    origin = rows.expand(-1, width)
    total = torch.full((images, width), NEVER, dtype=torch.float32, device=device)
    total[:, 0] = 0.0  # all hypotheses are equal at first
    complete: list[list[Hypothesis]] = [[] for _ in range(images)]
    for length in range(1, beam.longest):
        following = total[..., None] + step(ids.flatten(0, 1), origin.flatten()).unflatten(0, (images, width))
        vocabulary = following.shape[2]
        best, index = following.flatten(1).topk(min(2 * width, width * vocabulary))
        parent, is_end = index // vocabulary, index % vocabulary == beam.end
        ended = best.where(is_end, NEVER)[:, :width]
        _collect(complete, ids[rows, parent[:, :width]], ended, length, beam)
        total, kept = best.where(~is_end, NEVER).topk(width)
        parent, token = parent.gather(1, kept), (index % vocabulary).gather(1, kept)
        ids, origin = torch.cat([ids[rows, parent], token[..., None]], dim=2), rows * width + parent
        if _is_finished(complete, total, beam):
            return complete
    _collect(complete, ids, total, beam.longest - 1, beam)
    return complete


def _collect(complete: list[list[Hypothesis]], ids: Tensor, total: Tensor, length: int, beam: Beam) -> None:
    """Add the texts ids (B, K, t) with finite log-probabilities ``total`` (B, K), and keep the best ones."""
    scores = beam.score(total, length)
    for image, number in total.isfinite().nonzero().tolist():
        text = tuple(ids[image, number, 1:].tolist())
        complete[image].append(Hypothesis(text, float(total[image, number]), float(scores[image, number])))
        complete[image] = sorted(complete[image], key=lambda each: -each.score)[: beam.width]


def _is_finished(complete: Sequence[Sequence[Hypothesis]], total: Tensor, beam: Beam) -> bool:
    """Return whether no hypothesis can improve: log-probabilities only fall, and the longest text loses least."""
    bounds = beam.score(total, beam.longest - 1).amax(1).tolist()
    return all(
        len(texts) == beam.width and texts[-1].score >= bound for texts, bound in zip(complete, bounds, strict=True)
    )
