"""The Multiway Transformer block of VLMo: shared attention, and modality experts chosen by a route."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.layers.attention import LayerKVCache, SelfAttention, gather_positions

Route = tuple[tuple[str, int], ...]
"""The expert and the number of tokens of every part of a sequence, in order: (("text", 40), ("image", 197))."""

SHARED = "shared"
"""Name of an attention or expert that all modalities share."""


def one_expert(name: str, x: Tensor) -> Route:
    """Return the route of x (B, N, ...) through a single expert."""
    return ((name, x.shape[1]),)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample, and rescales the remaining ones."""

    def __init__(self, rate: float) -> None:
        """``rate`` is the probability that a sample loses the branch."""
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, N, D), in training with some samples set to zero."""
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class LayerScale(nn.Module):
    """A learned scale per channel (CaiT)."""

    def __init__(self, width: int, *, initial: float) -> None:
        """``initial`` is the initial scale of every channel."""
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Return x * weight."""
        return x * self.weight


class Expert(nn.Module):
    """A feed-forward network with its own LayerNorm (epsilon 1e-6) and exact GELU."""

    def __init__(self, width: int) -> None:
        """The hidden layer has 4 D units for ``width`` D."""
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, D)."""
        return self.down(F.gelu(self.up(self.norm(x))))


class Block(nn.Module):
    """A pre-norm block with one or several attentions and experts (VLMo, section 3.2).

    x + scale * attention(norm(x)), then x + scale * expert(x) with the experts of the route.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        attentions: Sequence[str] = (SHARED,),
        experts: Sequence[str],
        layer_scale: float,
        drop_path: float,
    ) -> None:
        """``attentions`` and ``experts`` are names; one called "shared" serves all names that are not listed.

        ``layer_scale`` is the initial scale, 0 for no LayerScale.
        """
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.ModuleDict({name: SelfAttention(width, heads=heads) for name in attentions})
        self.experts = nn.ModuleDict({name: Expert(width) for name in experts})
        self.scale_1 = LayerScale(width, initial=layer_scale) if layer_scale else nn.Identity()
        self.scale_2 = LayerScale(width, initial=layer_scale) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        route: Route,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        positions: Tensor | None = None,
        cache: LayerKVCache | None = None,
    ) -> Tensor:
        """Return (B, N, D), or (B, R, D) for ``positions`` (B, R) only, which ``route`` then refers to.

        ``mask`` (B, N) or (B, N, N), ``bias`` (H, N, N) and ``cache`` are those of :class:`SelfAttention`.
        """
        attention = _part(self.attention, route[0][0])
        attended = self.drop_path(self.scale_1(attention(self.norm(x), mask, bias, positions, cache)))
        x = (x if positions is None else gather_positions(x, positions)) + attended
        parts = x.split([length for _, length in route], dim=1)
        outputs = (_part(self.experts, name)(part) for part, (name, _) in zip(parts, route, strict=True))
        # every expert draws its own drop-path mask, as in the official code
        parts = [part + self.drop_path(self.scale_2(output)) for part, output in zip(parts, outputs, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def keys_and_values(self, x: Tensor, expert: str) -> LayerKVCache:
        """Return the keys and values of x (B, N, D) for later tokens; ``expert`` names the attention."""
        attention = _part(self.attention, expert)
        assert isinstance(attention, SelfAttention)
        return attention.keys_and_values(self.norm(x))


def _part(parts: nn.ModuleDict, name: str) -> nn.Module:
    return parts[name] if name in parts else parts[SHARED]
