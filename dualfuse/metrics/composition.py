"""Rules of composition benchmarks: which scores of images and captions count as correct, and what chance gives."""

from __future__ import annotations

from math import comb
from typing import NamedTuple

from torch import Tensor


class PairMargins(NamedTuple):
    """Margins of two images with one caption each: above zero, the case counts for the score of that name."""

    text: float
    image: float
    group: float


PAIR_CHANCE = PairMargins(text=1 / 4, image=1 / 4, group=1 / 6)
"""Shares that random scores reach: of the 24 orders of four different scores, 6, 6 and 4 are correct."""


def caption_margin(scores: Tensor, true: int = 1) -> float:
    """Return how far the lowest of the ``true`` first scores (C,) of captions lies above the highest of the others.

    Above zero, every true caption is preferred to every false one; ties count against the model.
    """
    return float(scores[:true].min() - scores[true:].max())


def caption_chance(captions: int, true: int = 1) -> float:
    """Return the share of cases in which random scores prefer all ``true`` of ``captions``."""
    return 1 / comb(captions, true)


def pair_margins(scores: Tensor) -> PairMargins:
    """Return the margins of scores (2, 2) of images and captions, of which those on the diagonal belong together.

    Winoground (Thrush et al. 2022, equations 1 to 3): the text score asks for the right caption of each image, the
    image score for the right image of each caption, the group score for both.
    """
    right, wrong = scores.diagonal(), scores.flip(1).diagonal()  # s(I0, C0), s(I1, C1); s(I0, C1), s(I1, C0)
    text = float((right - wrong).min())
    image = float((right - wrong.flip(0)).min())
    return PairMargins(text, image, min(text, image))
