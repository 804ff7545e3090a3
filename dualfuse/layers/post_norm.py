"""Layers that normalise after every branch, as in BERT: of the text tower, and of the cross-modal encoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention import attend, gather_positions


class Attention(nn.Module):
    """Attention from one sequence to another, or to itself, with a matrix and a bias for each of its parts."""

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        """``width`` D is split over ``heads``; ``dropout`` is that of attention weights."""
        super().__init__()
        if width % heads:
            raise DualfuseError(f"width {width} cannot be split over {heads} heads; choose a multiple of {heads}")
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.projection = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, R, D) for queries from x (B, R, D), keys and values from the ``context`` (B, N, D).

        ``mask`` (B, N) is True where the context has a token; None: everywhere.
        """
        dropout = self.dropout if self.training else 0.0
        attended = attend(
            self.query(x), self.key(context), self.value(context), heads=self.heads, mask=mask, dropout=dropout
        )
        return self.projection(attended)


class PostNorm(nn.Module):
    """What all these layers have: x = LN(x + attention(x)) first, x = LN(x + FFN(x)) last, with exact GELU."""

    def __init__(self, width: int, *, heads: int, feed_forward: int, epsilon: float, dropout: float) -> None:
        """``epsilon`` is that of every LayerNorm, ``dropout`` that of attention weights and of every branch."""
        super().__init__()
        self.attention = Attention(width, heads=heads, dropout=dropout)
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.dropout = nn.Dropout(dropout)

    def attend(self, x: Tensor, mask: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """Do the first part, for the positions ``positions`` (B, R) alone if they are given."""
        wanted = x if positions is None else gather_positions(x, positions)
        return self.attention_norm(wanted + self.dropout(self.attention(wanted, x, mask)))

    def widen(self, x: Tensor) -> Tensor:
        """Do the last part."""
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class TextLayer(PostNorm):
    """A layer of BERT and RoBERTa."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, N, D); ``mask`` (B, N) is True at tokens."""
        return self.widen(self.attend(x, mask))


class CrossLayer(PostNorm):
    """A layer with x = LN(x + attention(x, context)) between the two parts (BridgeTower, section 3.2)."""

    def __init__(self, width: int, *, heads: int, feed_forward: int, epsilon: float, dropout: float) -> None:
        """As :class:`PostNorm`."""
        super().__init__(width, heads=heads, feed_forward=feed_forward, epsilon=epsilon, dropout=dropout)
        self.cross_attention = Attention(width, heads=heads, dropout=dropout)
        self.cross_norm = nn.LayerNorm(width, eps=epsilon)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Return (B, N, D), or (B, R, D) for the positions ``positions`` (B, R) alone.

        ``mask`` (B, N) and ``context_mask`` (B, M) are True at tokens of x (B, N, D) and of ``context`` (B, M, D).
        """
        x = self.attend(x, mask, positions)
        x = self.cross_norm(x + self.dropout(self.cross_attention(x, context, context_mask)))
        return self.widen(x)
