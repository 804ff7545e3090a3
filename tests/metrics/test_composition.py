"""Margins by hand, and chance against random scores."""

from __future__ import annotations

import pytest
import torch

from dualfuse.metrics.composition import PAIR_CHANCE, caption_chance, caption_margin, pair_margins


def test_margins_of_captions_by_hand() -> None:
    assert caption_margin(torch.tensor([3.0, 1.0])) == 2
    assert caption_margin(torch.tensor([2.0, 2.0])) == 0  # a tie is not above zero
    assert caption_margin(torch.tensor([4.0, 1.0, 5.0, 0.0, 2.0])) == -1
    assert caption_margin(torch.tensor([3.0, 5.0, 2.0]), true=2) == 1  # SugarCrepe++: both true ones above the false
    assert caption_margin(torch.tensor([3.0, 1.0, 2.0]), true=2) == -1


@pytest.mark.parametrize(
    ("scores", "correct"),
    [
        ([[5.0, 1.0], [2.0, 6.0]], "text image group"),
        ([[5.0, 4.0], [6.0, 7.0]], "text"),  # both images prefer their captions, but caption 0 prefers image 1
        ([[5.0, 6.0], [1.0, 7.0]], "image"),  # both captions prefer their images, but image 0 prefers caption 1
        ([[1.0, 5.0], [6.0, 2.0]], ""),
        ([[5.0, 5.0], [1.0, 6.0]], "image"),  # a tie of image 0
        ([[5.0, 5.0], [5.0, 5.0]], ""),
    ],
)
def test_scores_of_winoground_by_hand(scores: list[list[float]], correct: str) -> None:
    """Rows are images, columns captions."""
    margins = pair_margins(torch.tensor(scores))
    assert " ".join(name for name in margins._fields if getattr(margins, name) > 0) == correct


def test_chance_is_that_of_random_scores() -> None:
    torch.manual_seed(0)
    margins = [pair_margins(scores) for scores in torch.rand(6000, 2, 2)]
    for name in PAIR_CHANCE._fields:
        share = sum(getattr(each, name) > 0 for each in margins) / len(margins)
        assert share == pytest.approx(getattr(PAIR_CHANCE, name), abs=0.02)
    for captions, true, chance in ((2, 1, 1 / 2), (4, 1, 1 / 4), (5, 1, 1 / 5), (3, 2, 1 / 3)):
        assert caption_chance(captions, true) == pytest.approx(chance)
        share = sum(caption_margin(scores, true) > 0 for scores in torch.rand(4000, captions)) / 4000
        assert share == pytest.approx(chance, abs=0.03)
