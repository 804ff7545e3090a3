"""Multi-head attention on the fused kernel, with padding, a learned bias, and wanted rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Self-attention as in BEiT and VLMo: queries and values have a bias, keys have none."""

    def __init__(self, width: int, *, heads: int) -> None:
        """``width`` D is split over ``heads`` H."""
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be split over {heads} heads; choose a multiple of {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.projection = nn.Linear(width, width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Gives (B, N, D), or (B, R, D) for the query positions ``rows`` (B, R) alone.

        ``mask`` (B, N) is True at keys that may be seen, None if all may; ``bias`` (H, N, N) is added to the scores.
        """
        if rows is None:
            no_key_bias = torch.zeros_like(self.q_bias)
            qkv = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, no_key_bias, self.v_bias]))
            query, key, value = qkv.chunk(3, dim=-1)
        else:
            weight = self.qkv.weight.split([x.shape[-1], 2 * x.shape[-1]])
            query = F.linear(take_rows(x, rows), weight[0], self.q_bias)
            bias_of_keys_and_values = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
            key, value = F.linear(x, weight[1], bias_of_keys_and_values).chunk(2, dim=-1)
            bias = None if bias is None else bias[:, rows].transpose(0, 1)  # (B, H, R, N)
        return self.projection(attend(query, key, value, heads=self.heads, mask=mask, bias=bias))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    heads: int,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Gives (B, R, D) for ``query`` (B, R, D), ``key`` and ``value`` (B, N, D), each split over ``heads`` H.

    ``mask`` (B, N) is True at keys that may be seen; ``bias`` (H, R, N) or (B, H, R, N) is added to the scores;
    ``dropout`` is the share of attention weights that is dropped.
    """
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    added = _added_to_scores(mask, bias, query)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=added, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(2)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Gives x[b, rows[b]]: (B, N, D) and (B, R) to (B, R, D)."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def _added_to_scores(mask: Tensor | None, bias: Tensor | None, query: Tensor) -> Tensor | None:
    if bias is None:
        return None if mask is None else mask[:, None, None, :]  # a boolean mask keeps the kernel's fast path
    bias = bias.to(query.dtype)
    if mask is None:
        return bias if bias.ndim == 4 else bias[None]
    unseen = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, float("-inf"))
    return bias + unseen[:, None, None, :]
