"""Post-norm Transformer layers, as in BERT: of the text tower, and of the cross-modal encoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention import attend, gather_positions


class Attention(nn.Module):
    """Attention from a sequence to itself or to another one, with separate query, key and value projections."""

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        """``width`` D is split over ``heads``; ``dropout`` is the dropout probability of attention weights."""
        super().__init__()
        if width % heads:
            raise DualfuseError(f"width {width} cannot be split over {heads} heads; choose a multiple of {heads}")
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.projection = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, R, D) for queries from x (B, R, D), keys and values from the ``context`` (B, N, D).

        ``mask`` (B, N) is True at tokens of the context; None: everywhere.
        """
        dropout = self.dropout if self.training else 0.0
        query, key, value = self.query(x), self.key(context), self.value(context)
        return self.projection(attend(query, key, value, heads=self.heads, mask=mask, dropout=dropout))


class PostNorm(nn.Module):
    """Base of the layers: x = LN(x + attention(x)) first, x = LN(x + FFN(x)) last, with exact GELU."""

    def __init__(self, width: int, *, heads: int, feed_forward: int, epsilon: float, dropout: float) -> None:
        """``epsilon`` is that of LayerNorms; ``dropout`` applies to attention weights and branches."""
        super().__init__()
        self.attention = Attention(width, heads=heads, dropout=dropout)
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.dropout = nn.Dropout(dropout)

    def attend(self, x: Tensor, mask: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """Apply self-attention; with ``positions`` (B, R), to these queries only."""
        query = x if positions is None else gather_positions(x, positions)
        return self.attention_norm(query + self.dropout(self.attention(query, x, mask)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Apply the feed-forward network."""
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class TextLayer(PostNorm):
    """A layer of BERT and RoBERTa."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, N, D); ``mask`` (B, N) is True at tokens."""
        return self.feed_forward(self.attend(x, mask))


class CrossLayer(PostNorm):
    """A layer with x = LN(x + attention(x, context)) between the two parts (BridgeTower, section 3.2)."""

    def __init__(self, width: int, *, heads: int, feed_forward: int, epsilon: float, dropout: float) -> None:
        """Arguments are those of :class:`PostNorm`."""
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
        """Return (B, N, D), or (B, R, D) for ``positions`` (B, R) only.

        ``mask`` (B, N) and ``context_mask`` (B, M) are True at tokens of x (B, N, D) and of ``context`` (B, M, D).
        """
        x = self.attend(x, mask, positions)
        x = self.cross_norm(x + self.dropout(self.cross_attention(x, context, context_mask)))
        return self.feed_forward(x)
