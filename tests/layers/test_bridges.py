"""Bridges against formulas for single tokens, and their sizes against the paper's table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dualfuse.layers.bridges import AddLinear, AllLayers, Bridge, BridgeKind, bridge

KINDS: tuple[BridgeKind, ...] = get_args(BridgeKind)
WIDTH, HEADS = 6, 2
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])


def randomized(made: nn.Module) -> nn.Module:
    """Return the module in float64, with all parameters far from their initial values."""
    torch.manual_seed(0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.6)
    return made.double().eval()


def states(seed: int) -> Tensor:
    return torch.randn(*MASK.shape, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def normalized(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    x = x - x.mean()
    return x / torch.sqrt((x * x).mean() + 1e-5) * norm.weight + norm.bias


def times(linear: nn.Linear, x: Tensor) -> Tensor:
    return linear.weight @ x + linear.bias


def attended(made: Bridge, u: Tensor, tokens: Tensor) -> Tensor:
    """Return the attention of one query ``u`` (D,) to tokens (N, D)."""
    part, size = made.attention, WIDTH // HEADS
    heads = []
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        query = times(part.query, u)[own]
        scores = torch.stack([query @ times(part.key, z)[own] / math.sqrt(size) for z in tokens])
        weights = scores.exp() / scores.exp().sum()
        heads.append(sum(weight * times(part.value, z)[own] for weight, z in zip(weights, tokens, strict=True)))
    return times(part.projection, torch.cat(heads))


def fed_forward(made: Bridge, x: Tensor) -> Tensor:
    return times(made.down, gelu(times(made.up, x)))


def gated(made: Bridge, u: Tensor, z: Tensor) -> Tensor:
    gate = 1 / (1 + (-times(made.linear, torch.cat([u, z]))).exp())
    return (1 - gate) * u + gate * z


Formula = Callable[[Bridge, Tensor, Tensor, Tensor], Tensor]
FORMULAS: dict[str, Formula] = {  # of one token's u and z (D,), and all z that may be seen (N, D)
    "add": lambda made, u, z, seen: u + z,
    "scaled_add": lambda made, u, z, seen: made.scale.item() * u + z,
    "interpolate": lambda made, u, z, seen: (1 - made.scale.item()) * u + made.scale.item() * z,
    "multiply": lambda made, u, z, seen: u * z,
    "interpolate_channels": lambda made, u, z, seen: (1 - made.scale) * u + made.scale * z,
    "interpolate_gated": lambda made, u, z, seen: gated(made, u, z),
    "linear": lambda made, u, z, seen: times(made.linear, torch.cat([u, z])),
    "mlp": lambda made, u, z, seen: times(made.linear, gelu(times(made.first, torch.cat([u, z])))),
    "cross_attention": lambda made, u, z, seen: attended(made, u, seen),
    "cross_attention_mlp": lambda made, u, z, seen: fed_forward(made, attended(made, u, seen)),
    "add_linear": lambda made, u, z, seen: u + z + times(made.linear, torch.cat([u, z])),
}


def test_every_kind_has_a_formula() -> None:
    assert set(FORMULAS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [MASK, None], ids=["padding", "no padding"])
@torch.no_grad()
def test_bridge_matches_the_formula(kind: BridgeKind, mask: Tensor | None) -> None:
    made = randomized(bridge(kind, WIDTH, HEADS))
    u, z = states(1), states(2)
    joined = made(u, z, mask)
    for row in range(len(u)):
        seen = z[row] if mask is None else z[row][mask[row]]
        for token in range(u.shape[1]):
            wanted = normalized(FORMULAS[kind](made, u[row, token], z[row, token], seen), made.norm)
            assert_close(joined[row, token], wanted, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_and_both_inputs_get_a_gradient(kind: BridgeKind) -> None:
    made = randomized(bridge(kind, WIDTH, HEADS))
    u, z = states(1).requires_grad_(), states(2).requires_grad_()
    (made(u, z, MASK) * states(3)).sum().backward()
    inputs = {"u": u, "z": z}
    still = [
        name
        for name, x in [*made.named_parameters(), *inputs.items()]
        if (x.grad is None or not x.grad.any()) and name != "attention.key.bias"  # a constant under the softmax
    ]
    assert still == []


@pytest.mark.parametrize(
    ("kind", "thousands", "exact"),
    [
        ("add", 18.4, 18_432),
        ("multiply", 18.4, 18_432),
        ("interpolate_channels", 26.0, 26_112),
        ("interpolate_gated", 11_800, 11_822_592),
        ("linear", 11_800, 11_822_592),
        ("mlp", 35_400, 35_430_912),
        ("cross_attention", 23_600, 23_642_112),
        ("cross_attention_mlp", 70_800, 70_866_432),
        ("add_linear", 11_800, 11_822_592),
    ],
)
def test_extra_parameters_at_base_size(kind: BridgeKind, thousands: float, exact: int) -> None:
    """Ten bridges and the two LayerNorms of the first layers, width 768; the paper gives three digits."""
    with torch.device("meta"):
        extra = 2 * 2 * 768 + 10 * sum(x.numel() for x in bridge(kind, 768, 12).parameters())
    assert extra == exact
    assert extra / 1e3 == pytest.approx(thousands, rel=0.005)


def test_initial_scales() -> None:
    starts = {kind: bridge(kind, WIDTH, HEADS).scale for kind in ("scaled_add", "interpolate", "interpolate_channels")}
    assert {kind: set(scale.tolist()) for kind, scale in starts.items()} == {
        "scaled_add": {1.0},
        "interpolate": {0.5},
        "interpolate_channels": {0.5},
    }
    assert [len(scale) for scale in starts.values()] == [1, 1, WIDTH]


def test_add_linear_is_initially_a_sum() -> None:
    made, add = randomized(bridge("add_linear", WIDTH, HEADS)), bridge("add", WIDTH, HEADS).double()
    assert isinstance(made, AddLinear)
    add.norm.load_state_dict(made.norm.state_dict())
    u, z = states(1), states(2)
    assert not torch.allclose(made(u, z, None), add(u, z, None))
    made.start()
    assert torch.equal(made(u, z, None), add(u, z, None))


@torch.no_grad()
def test_all_layers_matches_the_formula() -> None:
    """METER's fusion has weights over the lower layers, per token and channel."""
    made = randomized(AllLayers(WIDTH))
    layers = [states(seed) for seed in range(4)]
    joined = made(layers)
    for row in range(len(MASK)):
        for token in range(MASK.shape[1]):
            *lower, top = (layer[row, token] for layer in layers)
            scores = [times(made.gate, state) for state in lower]
            for channel in range(WIDTH):
                weights = [math.exp(score[channel]) for score in scores]
                mixed = sum(weight * float(state[channel]) for weight, state in zip(weights, lower, strict=True))
                wanted = float(top[channel]) + mixed / sum(weights)
                assert float(joined[row, token, channel]) == pytest.approx(wanted, abs=1e-10)
