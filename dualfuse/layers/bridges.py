"""Bridges: how a layer of a uni-modal tower is joined with the previous cross-modal state (BridgeTower, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention_flow import AttentionFlow
from dualfuse.layers.post_norm import Attention

BridgeKind = Literal[
    "add",
    "scaled_add",
    "interpolate",
    "multiply",
    "interpolate_channels",
    "interpolate_gated",
    "linear",
    "mlp",
    "cross_attention",
    "cross_attention_mlp",
    "add_linear",
]
"""The first three occur in published weights; all but scaled_add and interpolate in Table 1 of the paper."""


class Bridge(nn.Module):
    """LayerNorm(join(u, z)) of a tower's state u and the previous cross-modal state z, both (B, N, D)."""

    def __init__(self, width: int) -> None:
        """``width`` is D."""
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, u: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, N, D); ``mask`` (B, N), True at tokens, is used by bridges with attention."""
        return self.norm(self.join(u, z, mask))

    def join(self, u: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, N, D), which is then normalized."""
        raise NotImplementedError

    def attention_flow(self, flow: AttentionFlow, u: Tensor, z: Tensor) -> Tensor:
        """Return the relevance (N, M) after the bridge, given that of u and z. Raises DualfuseError if undefined."""
        raise DualfuseError(f"{type(self).__name__} does not define attention_flow: its attention cannot be explained")


class Add(Bridge):
    """u + z; like every bridge that reads u and z at the same token, it counts as a sum in attention flow."""

    def join(self, u: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return u + z."""
        return u + z

    def attention_flow(self, flow: AttentionFlow, u: Tensor, z: Tensor) -> Tensor:
        """Return the relevance of the sum."""
        return flow.mix(u, z)


class ScaledAdd(Add):
    """s u + z with a learned scalar s."""

    def __init__(self, width: int) -> None:
        """s is initially 1."""
        super().__init__(width)
        self.scale = nn.Parameter(torch.ones(1))

    def join(self, u: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return s u + z."""
        return self.scale * u + z


class Interpolate(Add):
    """(1 - b) u + b z with a learned scalar b, or one per channel."""

    def __init__(self, width: int, numbers: int) -> None:
        """``numbers`` is 1 or ``width``; b is initially 0.5."""
        super().__init__(width)
        self.scale = nn.Parameter(torch.full((numbers,), 0.5))

    def join(self, u: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return (1 - b) u + b z."""
        return (1 - self.scale) * u + self.scale * z


class Multiply(Add):
    """The product of u and z."""

    def join(self, u: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return u z."""
        return u * z


class Linear(Add):
    """W [u; z]."""

    def __init__(self, width: int) -> None:
        """W is D x 2 D."""
        super().__init__(width)
        self.linear = nn.Linear(2 * width, width)

    def join(self, u: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return W [u; z] + b."""
        return self.linear(torch.cat([u, z], dim=-1))


class InterpolateGated(Linear):
    """(1 - g) u + g z with a gate g = sigmoid(W [u; z]) per token and channel."""

    def join(self, u: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return (1 - g) u + g z."""
        return torch.lerp(u, z, super().join(u, z, mask).sigmoid())


class AddLinear(Linear):
    """u + z + W [u; z]; W is initially zero, so that the bridge is initially a sum."""

    def start(self) -> None:
        """Set W and its bias to zero."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def join(self, u: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return u + z + W [u; z]."""
        return u + z + super().join(u, z, mask)


class MLP(Linear):
    """W2 GELU(W1 [u; z])."""

    def __init__(self, width: int) -> None:
        """W1 is 2 D x 2 D, W2 D x 2 D."""
        super().__init__(width)
        self.first = nn.Linear(2 * width, 2 * width)

    def join(self, u: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return W2 GELU(W1 [u; z])."""
        return self.linear(F.gelu(self.first(torch.cat([u, z], dim=-1))))


class CrossAttention(Bridge):
    """Attention from u to z."""

    def __init__(self, width: int, heads: int) -> None:
        """``heads`` is the number of attention heads."""
        super().__init__(width)
        self.attention = Attention(width, heads=heads, dropout=0.0)

    def join(self, u: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attended z."""
        return self.attention(u, z, mask)

    def attention_flow(self, flow: AttentionFlow, u: Tensor, z: Tensor) -> Tensor:
        """Return the relevance of u and of what it takes from z."""
        return flow.attend(self.attention, u, z)


class CrossAttentionMLP(CrossAttention):
    """Attention from u to z, followed by a feed-forward network."""

    def __init__(self, width: int, heads: int) -> None:
        """The hidden layer has 4 D units."""
        super().__init__(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def join(self, u: Tensor, z: Tensor, mask: Tensor | None) -> Tensor:
        """Return FFN(attention(u, z))."""
        return self.down(F.gelu(self.up(super().join(u, z, mask))))


_BRIDGES: dict[BridgeKind, Callable[[int, int], Bridge]] = {
    "add": lambda width, _: Add(width),
    "scaled_add": lambda width, _: ScaledAdd(width),
    "interpolate": lambda width, _: Interpolate(width, 1),
    "interpolate_channels": lambda width, _: Interpolate(width, width),
    "interpolate_gated": lambda width, _: InterpolateGated(width),
    "multiply": lambda width, _: Multiply(width),
    "linear": lambda width, _: Linear(width),
    "mlp": lambda width, _: MLP(width),
    "cross_attention": CrossAttention,
    "cross_attention_mlp": CrossAttentionMLP,
    "add_linear": lambda width, _: AddLinear(width),
}


def bridge(kind: BridgeKind, width: int, heads: int) -> Bridge:
    """Return a bridge of ``kind``; ``heads`` is used by those with attention."""
    return _BRIDGES[kind](width, heads)


class AllLayers(nn.Module):
    """METER's gated sum over the layers of a tower: F_N + sum_i softmax_i(G F_i + g) F_i, i < N, per channel."""

    def __init__(self, width: int) -> None:
        """All layers share the matrix G."""
        super().__init__()
        self.gate = nn.Linear(width, width)

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Return (B, N, D) for the outputs (B, N, D) of all layers, in order."""
        *lower, top = layers
        stacked = torch.stack(lower)
        return top + (self.gate(stacked).softmax(0) * stacked).sum(0)
