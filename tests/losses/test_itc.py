"""The contrastive loss against a double loop; the draw of negatives against the softmax it stands for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dualfuse.layers.heads import normalize
from dualfuse.losses.itc import Similarities, find_positives, gather_similarities, itc_loss


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
        itc_loss(similar, positives).item(),
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
    assert itc_loss(similar, positives).item() == pytest.approx((image_to_text + math.log(3)) / 2)


def test_gradient_pulls_pairs_together() -> None:
    image, text = (x.requires_grad_() for x in features())
    scale = torch.ones(1, requires_grad=True)
    itc_loss(gather_similarities(image, text, scale), find_positives(torch.arange(5), torch.arange(5))).backward()
    assert image.grad is not None and text.grad is not None and scale.grad is not None
    assert ((image.grad * text).sum(1) < 0).all() and scale.grad.any()


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_share_of_the_gradient_leaves_the_loss_and_the_temperature(share: float) -> None:
    gradients = []
    for part in (1.0, share):
        image, text = (x.requires_grad_() for x in features())
        scale = torch.tensor([3.0], requires_grad=True)
        similar = gather_similarities(image, text, scale, encoder_grad=part)
        loss = itc_loss(similar, find_positives(torch.arange(5), torch.arange(5)))
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
