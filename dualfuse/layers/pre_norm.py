"""Pre-norm Transformer blocks, as in CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.layers.attention import attend

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
"""quick_gelu: x sigmoid(1.702 x), of OpenAI's CLIP; gelu: exact; gelu_tanh: the approximation with tanh, of SigLIP."""


class PreNormBlock(nn.Module):
    """x + attention(LN(x)), then x + FFN(LN(x))."""

    def __init__(self, width: int, *, heads: int, feed_forward: int, activation: Activation, epsilon: float) -> None:
        """``width`` is split over ``heads``; ``feed_forward`` is the width between; ``epsilon`` that of LayerNorms."""
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=epsilon)
        self.attention = PackedAttention(width, heads)
        self.norm_2 = nn.LayerNorm(width, eps=epsilon)
        self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.activate = activation_function(activation)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (B, N, width); ``mask`` (1 or B, N, N) is True where a token (row) may attend to another."""
        x = x + self.attention(self.norm_1(x), mask)
        return x + self.down(self.activate(self.up(self.norm_2(x))))


class PackedAttention(nn.Module):
    """Self-attention whose queries, keys and values come from one matrix, in that order."""

    def __init__(self, width: int, heads: int) -> None:
        """``width`` is split over ``heads``."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (B, N, width); ``mask`` (1 or B, N, N) is True where a token (row) may attend to another."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.projection(attend(query, key, value, heads=self.heads, mask=mask))

    def pool(self, query: Tensor, context: Tensor) -> Tensor:
        """Return (B, R, width) for queries (B, R, width), with keys and values from ``context`` (B, N, width)."""
        width = context.shape[-1]
        weights, biases = (part.split([width, 2 * width]) for part in (self.qkv.weight, self.qkv.bias))
        query = F.linear(query, weights[0], biases[0])
        key, value = F.linear(context, weights[1], biases[1]).chunk(2, dim=-1)
        return self.projection(attend(query, key, value, heads=self.heads))


class AttentionPooling(nn.Module):
    """SigLIP's pooling head: one learned query attends to all tokens, then x + FFN(LN(x)).

    It is timm's AttentionPoolLatent and big_vision's MAPHead (arXiv 2106.04560).
    """

    def __init__(self, width: int, *, heads: int, feed_forward: int, activation: Activation, epsilon: float) -> None:
        """The arguments are those of :class:`PreNormBlock`."""
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, width).normal_(std=width**-0.5))
        self.attention = PackedAttention(width, heads)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.activate = activation_function(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled state (B, width) of x (B, N, width)."""
        pooled = self.attention.pool(self.probe.expand(len(x), -1, -1), x)[:, 0]
        return pooled + self.down(self.activate(self.up(self.norm(pooled))))


def activation_function(name: Activation) -> Callable[[Tensor], Tensor]:
    """Return the function that an activation stands for."""
    return {"quick_gelu": quick_gelu, "gelu": F.gelu, "gelu_tanh": gelu_tanh}[name]


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x), CLIP's approximation of GELU."""
    return F.silu(1.702 * x) / 1.702  # silu saves one tensor for the backward pass; a product with x would save two


def gelu_tanh(x: Tensor) -> Tensor:
    """Return the approximation of GELU with tanh."""
    return F.gelu(x, approximate="tanh")
