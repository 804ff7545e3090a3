"""The Multiway Transformer block of VLMo: shared attention, and experts that a route assigns to the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.layers.attention import LayerKVCache, SelfAttention, gather_positions

Route = tuple[tuple[str, int], ...]
"""Which expert takes how many tokens, in the order of the sequence: (("text", 40), ("image", 197))."""

SHARED = "shared"
"""The name of a part that serves every modality."""


def one_expert(name: str, x: Tensor) -> Route:
    """Return the route on which one expert takes all of x (B, N, ...)."""
    return ((name, x.shape[1]),)


class DropPath(nn.Module):
    """Drops a residual branch for whole samples, and scales what is kept (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        """``rate`` is the share of samples that lose the branch."""
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, N, D) with some rows set to zero while training."""
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class LayerScale(nn.Module):
    """Multiplies each channel by a learned number (CaiT)."""

    def __init__(self, width: int, *, initial: float) -> None:
        """``initial`` is the first value of every channel."""
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Return x * weight."""
        return x * self.weight


class Expert(nn.Module):
    """One feed-forward expert with its own LayerNorm (epsilon 1e-6) and exact GELU."""

    def __init__(self, width: int) -> None:
        """``width`` D is widened to 4 D inside."""
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, D)."""
        return self.down(F.gelu(self.up(self.norm(x))))


class Block(nn.Module):
    """A pre-norm block with one or several attentions and experts (VLMo, section 3.2).

    x + scale * attention(norm(x)), then x + scale * expert(x) with the expert that the route names.
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
        """``attentions`` and ``experts`` name the parts; one called "shared" serves every name it does not have.

        ``layer_scale`` 0 means none.
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
        """Return (B, N, D), or (B, R, D) for the positions ``positions`` (B, R) alone; ``route`` then speaks of those.

        ``mask`` (B, N) or (B, N, N), ``bias`` (H, N, N) and ``cache`` are the attention's.
        """
        attention = _part(self.attention, route[0][0])
        attended = self.drop_path(self.scale_1(attention(self.norm(x), mask, bias, positions, cache)))
        x = (x if positions is None else gather_positions(x, positions)) + attended
        parts = x.split([length for _, length in route], dim=1)
        widened = (_part(self.experts, name)(part) for part, (name, _) in zip(parts, route, strict=True))
        # each part draws its own drop-path mask, as in the official code
        done = [part + self.drop_path(self.scale_2(wide)) for part, wide in zip(parts, widened, strict=True)]
        return done[0] if len(done) == 1 else torch.cat(done, dim=1)

    def keys_and_values(self, x: Tensor, expert: str) -> LayerKVCache:
        """Return the keys and values of x (B, N, D), by which later tokens see it; ``expert`` says whose they are."""
        attention = _part(self.attention, expert)
        assert isinstance(attention, SelfAttention)  # all of them are
        return attention.keys_and_values(self.norm(x))


def _part(parts: nn.ModuleDict, name: str) -> nn.Module:
    return parts[name] if name in parts else parts[SHARED]
