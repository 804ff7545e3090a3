"""Softmax and sigmoid ITC against double loops, on one, two and four processes, at once and in chunks."""

from __future__ import annotations

import math

import pytest
import torch
from many import start
from torch import Tensor
from torch.testing import assert_close

from dualfuse import distributed as dist
from dualfuse.layers.heads import normalize
from dualfuse.losses.itc import Similarities, find_positives, gather_similarities, itc_loss

IMAGES, TEXTS = (0, 1, 2, 0, 4, 5, 6, 7), (0, 1, 2, 3, 4, 4, 6, 7)


def features(number: int = 5, width: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return normalize(torch.randn(number, width)), normalize(torch.randn(number, width))


def naive_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None, pairs: list[tuple[int, int]]) -> Tensor:
    """The loss of the pairs (image id, text id), one logit at a time: of softmax, or with a bias of sigmoid."""
    number, data = len(image), set(pairs)
    logits = [[scale[0] * (image[i] @ text[j]) for j in range(number)] for i in range(number)]
    positive = [[(pairs[i][0], pairs[j][1]) in data for j in range(number)] for i in range(number)]
    if bias is not None:
        losses = []
        for i in range(number):
            terms = [(logits[i][j] + bias[0]) * (1 if positive[i][j] else -1) for j in range(number)]
            losses.append(-sum((1 / (1 + (-term).exp())).log() for term in terms))
        return torch.stack(losses).mean()
    losses = []
    for table, right in ((logits, positive), (list(zip(*logits, strict=True)), list(zip(*positive, strict=True)))):
        for values, positives in zip(table, right, strict=True):
            normalizer = torch.stack(list(values)).exp().sum().log()
            chosen = [value for value, is_positive in zip(values, positives, strict=True) if is_positive]
            losses.append(-sum(value - normalizer for value in chosen) / len(chosen))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("bias", [None, -2.0], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("scale", [1.0, 14.3])
@pytest.mark.parametrize("images", [(0, 1, 2, 3, 4), (0, 1, 2, 0, 4), (0, 0, 2, 0, 2)])
def test_loss_matches_a_double_loop(scale: float, images: tuple[int, ...], bias: float | None) -> None:
    image, text = features()
    biases = None if bias is None else torch.tensor([bias])
    positives = find_positives(torch.tensor(images), torch.arange(5))
    similar = gather_similarities(image, text, torch.tensor([scale]), biases)
    expected = naive_loss(image, text, torch.tensor([scale]), biases, list(zip(images, range(5), strict=True)))
    assert_close(itc_loss(similar, positives), expected, atol=1e-5, rtol=1e-5)
    assert_close(similar.image_to_text[1, 3], scale * image[1] @ text[3])
    assert_close(similar.text_to_image[1, 3], scale * text[1] @ image[3])


@pytest.mark.parametrize("bias", [None, -2.0], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_loss_and_gradients_on_several_processes_match_one(world: int, bias: float | None) -> None:
    """Every process holds its part of eight pairs, of which two share an image and two share a text."""
    inputs = [*features(8), torch.tensor([3.0]), *([] if bias is None else [torch.tensor([bias])])]
    inputs = [value.double().requires_grad_() for value in inputs]
    pairs = list(zip(IMAGES, TEXTS, strict=True))
    expected = naive_loss(*inputs[:3], inputs[3] if bias is not None else None, pairs)
    gradients = torch.autograd.grad(expected, inputs)

    def work() -> None:
        torch.set_num_threads(1)
        with dist.process_group():
            size = 8 // dist.world_size()
            own = slice(dist.rank() * size, (dist.rank() + 1) * size)
            positives = find_positives(torch.tensor(IMAGES)[own], torch.tensor(TEXTS)[own])
            for chunk in (0, 1, 3):
                mine = [
                    value.detach()[own if n < 2 else slice(None)].requires_grad_() for n, value in enumerate(inputs)
                ]
                loss = itc_loss(gather_similarities(*mine), positives, chunk)
                assert_close(dist.all_reduce_mean(loss).double(), expected.detach(), atol=1e-6, rtol=1e-6)
                image, text, *scalars = torch.autograd.grad(loss, mine)
                for ours, whole in zip((image, text), gradients, strict=False):
                    assert_close(ours / dist.world_size(), whole[own], atol=1e-6, rtol=1e-5)
                for ours, whole in zip(scalars, gradients[2:], strict=True):
                    assert_close(dist.all_reduce_mean(ours), whole, atol=1e-6, rtol=1e-5)

    assert start(world, work) == [0] * world


def test_several_positives_by_hand() -> None:
    """Pairs 0 and 1 share an image: their target is uniform over both columns. All logits are 0 but one, ln 2."""
    logits = torch.tensor([[math.log(2), 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    positives = find_positives(torch.tensor([0, 0, 2]), torch.arange(3))
    similar = Similarities(logits, torch.zeros(3, 3), torch.eye(3), torch.eye(3), torch.ones(1))
    first = -(math.log(2 / 4) + math.log(1 / 4)) / 2
    image_to_text = (first + math.log(3) + math.log(3)) / 3
    assert itc_loss(similar, positives).item() == pytest.approx((image_to_text + math.log(3)) / 2)


@pytest.mark.parametrize("bias", [None, -2.0], ids=["softmax", "sigmoid"])
def test_gradient_pulls_pairs_together(bias: float | None) -> None:
    image, text = (x.requires_grad_() for x in features())
    scale = torch.ones(1, requires_grad=True)
    similar = gather_similarities(image, text, scale, None if bias is None else torch.tensor([bias]))
    itc_loss(similar, find_positives(torch.arange(5), torch.arange(5))).backward()
    assert image.grad is not None and text.grad is not None and scale.grad is not None
    assert ((image.grad * text).sum(1) < 0).all() and scale.grad.any()


@pytest.mark.parametrize("bias", [None, -2.0], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_encoder_grad_scales_the_gradient_of_features_only(share: float, bias: float | None) -> None:
    gradients = []
    for encoder_grad in (1.0, share):
        image, text = (x.requires_grad_() for x in features())
        scale = torch.tensor([3.0], requires_grad=True)
        biases = None if bias is None else torch.tensor([bias])
        similar = gather_similarities(image, text, scale, biases, encoder_grad)
        loss = itc_loss(similar, find_positives(torch.arange(5), torch.arange(5)))
        gradients.append((loss.detach(), *torch.autograd.grad(loss, (scale, image, text))))
    whole, part = gradients
    assert_close(part[:2], whole[:2])
    assert_close(part[2:], tuple(share * gradient for gradient in whole[2:]))


def test_positives_are_the_pairs_of_the_batch() -> None:
    """Images a a b c with texts x y y z: text x is positive for a only, text y for a and b, image a for x and y."""
    positives = find_positives(torch.tensor([1, 1, 2, 3]), torch.tensor([7, 8, 8, 9]))
    assert positives.texts_of_images.long().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert positives.images_of_texts.long().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    assert positives.avoided == 9 + 9 - 8
    alone = find_positives(torch.arange(4), torch.arange(4))
    assert torch.equal(alone.texts_of_images, torch.eye(4, dtype=torch.bool)) and alone.avoided == 0


def test_equal_ids_of_an_image_and_a_text_are_unrelated() -> None:
    positives = find_positives(torch.tensor([1, 2]), torch.tensor([2, 1]))
    assert torch.equal(positives.images_of_texts, torch.eye(2, dtype=torch.bool))
