"""Attention flow: how relevance passes from the input tokens through attention layers and residual sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class AttentionFlow:
    """The two rules that combine the attention maps of a model.

    Relevance is an (N, M) matrix: how much each of N states holds of each of M input tokens. ``attention_map`` returns
    the map (R, N) of an attention module, averaged over heads: how much each query takes from each key. ``mix``
    combines the relevance that a state held with the relevance that it takes.
    """

    attention_map: Callable[[nn.Module], Tensor]
    mix: Callable[[Tensor, Tensor], Tensor]

    def attend(self, attention: nn.Module, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the relevance of x + attention(x, context); without ``context`` it is self-attention."""
        return self.mix(x, self.attention_map(attention) @ (x if context is None else context))

    def stack(self, layers: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
        """Return the relevance after each of ``layers``, whose self-attention is their submodule ``attention``."""
        states = []
        for layer in layers:
            x = self.attend(layer.get_submodule("attention"), x)
            states.append(x)
        return states


def rollout(held: Tensor, taken: Tensor) -> Tensor:
    """Weigh the residual as much as attention, so that rows keep the sum 1 (Abnar and Zuidema 2020)."""
    return (held + taken) / 2


def relevance_sum(held: Tensor, taken: Tensor) -> Tensor:
    """Return R + A R for maps A weighted by their gradient (Chefer, Gur and Wolf 2021, equation 6)."""
    return held + taken
