"""Sampling of hard negatives against the softmax it stands for."""

from __future__ import annotations

import math

import pytest
import torch

from dualfuse.losses.hard_negatives import gumbel, sample_negatives
from dualfuse.losses.itc import find_positives

DRAWS = 20_000


@pytest.mark.parametrize("allowed", [[0, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1]])
def test_draws_follow_the_softmax_of_the_candidates(allowed: list[int]) -> None:
    logits, mask = torch.tensor([2.0, -1.0, 0.0, 1.5, 1.0, -3.0]), torch.tensor(allowed, dtype=torch.bool)
    noise = gumbel(0, torch.arange(DRAWS), 6)
    drawn, has_any = sample_negatives(logits.expand(DRAWS, -1), mask.expand(DRAWS, -1), noise)
    assert has_any.all()
    counts = torch.bincount(drawn, minlength=6).double()
    weights = [math.exp(logit) * ok for logit, ok in zip(logits.tolist(), allowed, strict=True)]
    expected = torch.tensor(weights, dtype=torch.float64) / sum(weights) * DRAWS
    assert not counts[~mask].any()
    chi_square = ((counts - expected)[mask] ** 2 / expected[mask]).sum().item()
    assert chi_square < 18.5  # exceeded once in a thousand with four degrees of freedom; fewer exceed it less


def test_draws_are_independent() -> None:
    """Of neighboring rows, and of one row with two keys."""
    rows, allowed = torch.arange(DRAWS), torch.ones(DRAWS, 2, dtype=torch.bool)
    drawn, again = (sample_negatives(torch.zeros(DRAWS, 2), allowed, gumbel(key, rows, 2))[0] for key in (5, 6))
    for one, other in ((drawn[::2], drawn[1::2]), (drawn, again)):
        pairs = torch.bincount(one * 2 + other, minlength=4) / len(one)
        assert pairs.tolist() == pytest.approx([0.25] * 4, abs=0.02)


def test_noise_is_gumbel() -> None:
    """Its mean is Euler's constant, its variance pi squared over six."""
    noise = gumbel(3, torch.arange(500), 400).double()
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    correlation = torch.corrcoef(noise[:20])
    assert (correlation - torch.eye(20)).abs().max() < 0.25


def test_noise_of_a_row_does_not_depend_on_other_rows() -> None:
    whole = gumbel(9, torch.arange(8), 5)
    assert torch.equal(gumbel(9, torch.tensor([6, 2]), 5), whole[[6, 2]])
    assert not torch.equal(gumbel(8, torch.arange(8), 5), whole)


def test_a_positive_is_never_drawn() -> None:
    """Even where it is by far the most similar, so that the softmax of the negatives underflows to zero."""
    positive = find_positives(torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 2, 2, 4])).images_of_texts
    logits = 1e4 * positive.float() + torch.tensor([0.0, 0.0, 0.0, 3.0, 0.0])
    for key in range(200):
        drawn, has_any = sample_negatives(logits, ~positive, gumbel(key, torch.arange(5), 5))
        assert has_any.all() and not positive[torch.arange(5), drawn].any()


def test_differences_that_underflow_the_softmax_keep_the_order() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4, -2e4], [0.0, 1e4, -2e4, -1e4]])
    allowed = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    for key in range(50):
        assert sample_negatives(logits, allowed, gumbel(key, torch.arange(2), 4))[0].tolist() == [2, 3]


def test_a_row_without_candidates_is_reported() -> None:
    allowed = torch.tensor([[False, False], [True, False]])
    drawn, has_any = sample_negatives(torch.zeros(2, 2), allowed, gumbel(0, torch.arange(2), 2))
    assert has_any.tolist() == [False, True] and 0 <= drawn[0] < 2 and drawn[1] == 0
    alone, has_any = sample_negatives(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool), torch.zeros(1, 1))
    assert alone.tolist() == [0] and has_any.tolist() == [False]


def test_draws_have_no_gradient_and_use_the_noise_passed() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0]], requires_grad=True)
    allowed = torch.ones(1, 3, dtype=torch.bool)
    drawn, _ = sample_negatives(logits, allowed, torch.tensor([[0.0, 0.0, 2.5]]))
    assert drawn.tolist() == [2] and not drawn.requires_grad
    assert sample_negatives(logits.bfloat16(), allowed, torch.zeros(1, 3))[0].tolist() == [1]
