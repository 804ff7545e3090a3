"""The contrastive loss against a double loop; the draw of negatives against the softmax it stands for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dualfuse.layers.heads import normalize
from dualfuse.losses.itc import (
    Similarities,
    find_positives,
    gather_similarities,
    gumbel,
    local_columns,
    sample_negatives,
)

DRAWS = 20_000


def features(number: int = 5, width: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return normalize(torch.randn(number, width)), normalize(torch.randn(number, width))


def naive_loss(image: Tensor, text: Tensor, scale: float, positive: list[list[bool]]) -> float:
    total, number = 0.0, len(image)
    for left, right in ((image, text), (text, image)):
        for i in range(number):
            weights = [math.exp(scale * float(left[i] @ right[j])) for j in range(number)]
            right_ones = [j for j in range(number) if positive[i][j]]
            total -= sum(math.log(weights[j] / sum(weights)) for j in right_ones) / len(right_ones)
    return total / (2 * number)


@pytest.mark.parametrize("scale", [1.0, 14.3])
@pytest.mark.parametrize("shown", [(0, 1, 2, 3, 4), (0, 1, 2, 0, 4), (0, 0, 2, 0, 2)])
def test_loss_against_a_double_loop(scale: float, shown: tuple[int, ...]) -> None:
    image, text = features()
    positive = [[one == other for other in shown] for one in shown]
    positives = find_positives(torch.tensor(shown), torch.arange(5))
    similar = gather_similarities(image, text, torch.tensor([scale]))
    assert_close(
        similar.loss(positives).item(),
        naive_loss(image, text, scale, positive),
        atol=1e-5,
        rtol=1e-5,
    )
    assert_close(similar.image_to_text[1, 3], scale * image[1] @ text[3])
    assert_close(similar.text_to_image[1, 3], scale * text[1] @ image[3])


def test_several_positives_by_hand() -> None:
    """Pairs 0 and 1 show the same image: their rows aim at both columns alike. All logits are 0 but one ln 2."""
    logits = torch.tensor([[math.log(2), 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    positives = find_positives(torch.tensor([0, 0, 2]), torch.arange(3))
    similar = Similarities(logits, torch.zeros(3, 3), torch.eye(3), torch.eye(3), torch.ones(1))
    first = -(math.log(2 / 4) + math.log(1 / 4)) / 2
    image_to_text = (first + math.log(3) + math.log(3)) / 3
    assert similar.loss(positives).item() == pytest.approx((image_to_text + math.log(3)) / 2)


def test_gradient_pulls_pairs_together() -> None:
    image, text = (x.requires_grad_() for x in features())
    scale = torch.ones(1, requires_grad=True)
    gather_similarities(image, text, scale).loss(find_positives(torch.arange(5), torch.arange(5))).backward()
    assert image.grad is not None and text.grad is not None and scale.grad is not None
    assert ((image.grad * text).sum(1) < 0).all() and scale.grad.any()


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_share_of_the_gradient_leaves_the_loss_and_the_temperature(share: float) -> None:
    gradients = []
    for part in (1.0, share):
        image, text = (x.requires_grad_() for x in features())
        scale = torch.tensor([3.0], requires_grad=True)
        loss = gather_similarities(image, text, scale, part).loss(find_positives(torch.arange(5), torch.arange(5)))
        gradients.append((loss.detach(), *torch.autograd.grad(loss, (scale, image, text))))
    whole, some = gradients
    assert_close(some[:2], whole[:2])
    # rows of both matrices reach the features once as own and once as gathered: both carry the share
    assert_close(some[2:], tuple(share * gradient for gradient in whole[2:]))


def test_positives_are_what_some_pair_has() -> None:
    """Images a a b c with texts x y y z: text x is right for a alone, text y for a and b, image a for x and y."""
    positives = find_positives(torch.tensor([1, 1, 2, 3]), torch.tensor([7, 8, 8, 9]))
    assert positives.texts_of_images.long().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert positives.images_of_texts.long().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    assert positives.avoided == 9 + 9 - 8
    alone = find_positives(torch.arange(4), torch.arange(4))
    assert torch.equal(alone.texts_of_images, torch.eye(4, dtype=torch.bool)) and alone.avoided == 0


def test_a_number_in_both_lists_means_nothing() -> None:
    """Image 1 and text 1 have nothing to do with each other."""
    positives = find_positives(torch.tensor([1, 2]), torch.tensor([2, 1]))
    assert torch.equal(positives.images_of_texts, torch.eye(2, dtype=torch.bool))


def test_own_columns_of_one_process_are_all() -> None:
    assert local_columns(3, torch.device("cpu")).tolist() == [True] * 3


@pytest.mark.parametrize("allowed", [[0, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1]])
def test_draws_follow_the_softmax_of_the_allowed(allowed: list[int]) -> None:
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


def test_rows_are_drawn_independently() -> None:
    """Of neighbouring rows, and of one row in two steps."""
    rows, allowed = torch.arange(DRAWS), torch.ones(DRAWS, 2, dtype=torch.bool)
    drawn, again = (sample_negatives(torch.zeros(DRAWS, 2), allowed, gumbel(key, rows, 2))[0] for key in (5, 6))
    for one, other in ((drawn[::2], drawn[1::2]), (drawn, again)):
        pairs = torch.bincount(one * 2 + other, minlength=4) / len(one)
        assert pairs.tolist() == pytest.approx([0.25] * 4, abs=0.02)


def test_noise_is_gumbels() -> None:
    """Mean and variance are known numbers: Euler's constant, and a sixth of the square of pi."""
    noise = gumbel(3, torch.arange(500), 400).double()
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)
    correlation = torch.corrcoef(noise[:20])
    assert (correlation - torch.eye(20)).abs().max() < 0.25


def test_noise_of_a_row_does_not_depend_on_the_others() -> None:
    whole = gumbel(9, torch.arange(8), 5)
    assert torch.equal(gumbel(9, torch.tensor([6, 2]), 5), whole[[6, 2]])
    assert not torch.equal(gumbel(8, torch.arange(8), 5), whole)


def test_a_positive_is_never_drawn() -> None:
    """Even where it is the most similar by far, and wrong ones are hopeless: the softmax underflows to zero."""
    positive = find_positives(torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 2, 2, 4])).images_of_texts
    logits = 1e4 * positive.float() + torch.tensor([0.0, 0.0, 0.0, 3.0, 0.0])
    for key in range(200):
        drawn, has_any = sample_negatives(logits, ~positive, gumbel(key, torch.arange(5), 5))
        assert has_any.all() and not positive[torch.arange(5), drawn].any()


def test_a_gap_too_wide_for_the_softmax_keeps_the_order() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4, -2e4], [0.0, 1e4, -2e4, -1e4]])
    allowed = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)
    for key in range(50):
        assert sample_negatives(logits, allowed, gumbel(key, torch.arange(2), 4))[0].tolist() == [2, 3]


def test_a_row_without_candidates_says_so() -> None:
    allowed = torch.tensor([[False, False], [True, False]])
    drawn, has_any = sample_negatives(torch.zeros(2, 2), allowed, gumbel(0, torch.arange(2), 2))
    assert has_any.tolist() == [False, True] and 0 <= drawn[0] < 2 and drawn[1] == 0
    alone, has_any = sample_negatives(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool), torch.zeros(1, 1))
    assert alone.tolist() == [0] and has_any.tolist() == [False]


def test_draws_carry_no_gradient_and_take_given_noise() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0]], requires_grad=True)
    allowed = torch.ones(1, 3, dtype=torch.bool)
    drawn, _ = sample_negatives(logits, allowed, torch.tensor([[0.0, 0.0, 2.5]]))
    assert drawn.tolist() == [2] and not drawn.requires_grad
    assert sample_negatives(logits.bfloat16(), allowed, torch.zeros(1, 3))[0].tolist() == [1]
