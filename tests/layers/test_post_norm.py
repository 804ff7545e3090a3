"""Layers of the text tower and the cross-modal encoder against formulas for single tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dualfuse.layers.post_norm import Attention, CrossLayer, PostNorm, TextLayer

WIDTH, HEADS, INSIDE, EPSILON = 6, 3, 10, 0.3  # an epsilon that cannot be overlooked
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])
CONTEXT_MASK = torch.tensor([[True, False, False], [True, True, True]])


def randomized(made: PostNorm) -> PostNorm:
    """Return the layer in float64, with all parameters far from their initial values."""
    torch.manual_seed(0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.6)
    return made.double().eval()


def text_layer(dropout: float = 0.0) -> TextLayer:
    return randomized(TextLayer(WIDTH, heads=HEADS, feed_forward=INSIDE, epsilon=EPSILON, dropout=dropout))


def cross_layer(dropout: float = 0.0) -> CrossLayer:
    return randomized(CrossLayer(WIDTH, heads=HEADS, feed_forward=INSIDE, epsilon=EPSILON, dropout=dropout))


def states(length: int, seed: int = 1) -> Tensor:
    return torch.randn(2, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def times(linear: nn.Linear, x: Tensor) -> Tensor:
    return linear.weight @ x + linear.bias


def normalized(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    x = x - x.mean()
    return x / torch.sqrt((x * x).mean() + EPSILON) * norm.weight + norm.bias


def attended(part: Attention, x: Tensor, seen: Tensor) -> Tensor:
    """Return the attention of one query x (D,) to tokens (N, D)."""
    size = WIDTH // HEADS
    heads = []
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        query = times(part.query, x)[own]
        scores = torch.stack([query @ times(part.key, other)[own] / math.sqrt(size) for other in seen])
        weights = scores.exp() / scores.exp().sum()
        heads.append(sum(weight * times(part.value, other)[own] for weight, other in zip(weights, seen, strict=True)))
    return times(part.projection, torch.cat(heads))


def fed_forward(layer: PostNorm, x: Tensor) -> Tensor:
    inside = times(layer.up, x)
    inside = inside * (1 + torch.erf(inside / math.sqrt(2))) / 2
    return normalized(x + times(layer.down, inside), layer.norm)


def naive(layer: PostNorm, x: Tensor, mask: Tensor | None, context: Tensor | None, seen: Tensor | None) -> Tensor:
    """Return the output for one example x (N, D); cross-modal layers read ``context`` (M, D) where ``seen`` (M,)."""
    given = []
    for token in x:
        own = normalized(token + attended(layer.attention, token, x if mask is None else x[mask]), layer.attention_norm)
        if isinstance(layer, CrossLayer):
            assert context is not None
            other = attended(layer.cross_attention, own, context if seen is None else context[seen])
            own = normalized(own + other, layer.cross_norm)
        given.append(fed_forward(layer, own))
    return torch.stack(given)


@pytest.mark.parametrize("mask", [MASK, None], ids=["padding", "no padding"])
@torch.no_grad()
def test_text_layer_matches_the_formula(mask: Tensor | None) -> None:
    layer, x = text_layer(), states(4)
    wanted = [naive(layer, x[row], None if mask is None else mask[row], None, None) for row in range(2)]
    assert_close(layer(x, mask), torch.stack(wanted), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("mask", [MASK, None], ids=["padding", "no padding"])
@pytest.mark.parametrize("context_mask", [CONTEXT_MASK, None], ids=["hidden context", "whole context"])
@torch.no_grad()
def test_cross_layer_matches_the_formula(mask: Tensor | None, context_mask: Tensor | None) -> None:
    layer, x, context = cross_layer(), states(4), states(3, seed=2)
    wanted = [
        naive(
            layer,
            x[row],
            None if mask is None else mask[row],
            context[row],
            None if context_mask is None else context_mask[row],
        )
        for row in range(2)
    ]
    given = layer(x, context, mask=mask, context_mask=context_mask)
    assert_close(given, torch.stack(wanted), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("rows", [[[0, 2], [1, 1]], [[3], [0]], [[], []]], ids=["two", "one", "none"])
@torch.no_grad()
def test_selected_positions_match_the_full_output(rows: list[list[int]]) -> None:
    layer, x, context = cross_layer(), states(4), states(3, seed=2)
    wanted = torch.tensor(rows, dtype=torch.long).view(2, -1)
    whole = layer(x, context, mask=MASK, context_mask=CONTEXT_MASK)
    some = layer(x, context, mask=MASK, context_mask=CONTEXT_MASK, positions=wanted)
    assert_close(some, torch.stack([whole[row, wanted[row]] for row in range(2)]), atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_masked_tokens_are_not_read() -> None:
    layer, x, context = cross_layer(), states(4), states(3, seed=2)
    before = layer(x, context, mask=MASK, context_mask=CONTEXT_MASK)
    hidden_x = torch.where(MASK[..., None], x, 1e3)
    hidden_context = torch.where(CONTEXT_MASK[..., None], context, 1e3)
    after = layer(hidden_x, hidden_context, mask=MASK, context_mask=CONTEXT_MASK)
    assert torch.equal(before[MASK], after[MASK])


@pytest.mark.parametrize("layer", [text_layer(0.5), cross_layer(0.5)], ids=["text", "cross"])
def test_dropout_is_applied_in_training_only(layer: PostNorm) -> None:
    """With dropout 1, only the LayerNorms remain of every branch."""
    x = states(4)
    arguments = (x, states(3, seed=2)) if isinstance(layer, CrossLayer) else (x, None)
    assert torch.equal(layer.eval()(*arguments), layer(*arguments))
    layer.train()
    assert not torch.equal(layer(*arguments), layer(*arguments))
    layer.dropout.p = 1.0
    alone = layer.attention_norm(x)
    if isinstance(layer, CrossLayer):
        alone = layer.cross_norm(alone)
    assert torch.equal(layer(*arguments), layer.norm(alone))


def test_dropout_of_attention_weights() -> None:
    """The mean over many dropout masks approaches the output in evaluation mode."""
    part = randomized(TextLayer(WIDTH, heads=HEADS, feed_forward=INSIDE, epsilon=EPSILON, dropout=0.5)).attention
    x = states(4)[:1].expand(20_000, -1, -1)
    wanted = part(x[:1], x[:1], None)[0]
    torch.manual_seed(0)
    drawn = part.train()(x, x, None)
    assert drawn.std(0).min() > 0.05
    assert_close(drawn.mean(0), wanted, atol=0.05, rtol=0)


def test_a_width_not_divisible_by_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="width 6 cannot be split over 4 heads; choose a multiple of 4"):
        Attention(6, heads=4, dropout=0.0)
