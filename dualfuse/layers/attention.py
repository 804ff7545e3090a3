"""Multi-head attention on the fused kernel, with a mask, a learned bias, and selected query positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.errors import DualfuseError


@dataclass(frozen=True)
class LayerKVCache:
    """Cached keys and values (B, N, D) of earlier tokens."""

    key: Tensor
    value: Tensor

    def __len__(self) -> int:
        """Return the number of tokens N."""
        return self.key.shape[1]

    def append(self, *later: LayerKVCache) -> LayerKVCache:
        """Append later tokens of the same sequences."""
        parts = (self, *later)
        return LayerKVCache(torch.cat([part.key for part in parts], 1), torch.cat([part.value for part in parts], 1))

    def take(self, index: Tensor) -> LayerKVCache:
        """Return the examples ``index`` (K,), in that order."""
        return LayerKVCache(self.key.index_select(0, index), self.value.index_select(0, index))


class SelfAttention(nn.Module):
    """Self-attention as in BEiT and VLMo: queries and values have a bias, keys have none."""

    def __init__(self, width: int, *, heads: int) -> None:
        """``width`` D is split over ``heads`` H."""
        super().__init__()
        if width % heads:
            raise DualfuseError(f"width {width} cannot be split over {heads} heads; choose a multiple of {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.projection = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        positions: Tensor | None = None,
        cache: LayerKVCache | None = None,
    ) -> Tensor:
        """Return (B, N, D), or (B, R, D) for the query positions ``positions`` (B, R) alone.

        ``mask`` is True at keys to attend to: (B, N), or (B, N, N) for a mask per query; None: all keys.
        ``bias`` (H, N, N) is added to the scores. The keys of M earlier tokens in ``cache`` come before those of x:
        M + N keys.
        """
        if positions is None:
            no_key_bias = torch.zeros_like(self.q_bias)
            qkv = F.linear(x, self.qkv.weight, torch.cat([self.q_bias, no_key_bias, self.v_bias]))
            query, key, value = qkv.chunk(3, dim=-1)
        else:
            weight = self.qkv.weight.split([x.shape[-1], 2 * x.shape[-1]])
            query = F.linear(gather_positions(x, positions), weight[0], self.q_bias)
            key, value = self._keys_and_values(x, weight[1])
            bias = None if bias is None else bias[:, positions].transpose(0, 1)  # (B, H, R, N)
            mask = gather_positions(mask, positions) if mask is not None and mask.ndim == 3 else mask
        if cache is not None:
            joined = cache.append(LayerKVCache(key, value))
            key, value = joined.key, joined.value
        return self.projection(attend(query, key, value, heads=self.heads, mask=mask, bias=bias))

    def keys_and_values(self, x: Tensor) -> LayerKVCache:
        """Return the keys and values of x (B, N, D)."""
        return LayerKVCache(*self._keys_and_values(x, self.qkv.weight[x.shape[-1] :]))

    def _keys_and_values(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        bias_of_keys_and_values = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        return F.linear(x, weight, bias_of_keys_and_values).chunk(2, dim=-1)


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
    """Return (B, R, D) for ``query`` (B, R, D), ``key`` and ``value`` (B, N, D), each split over ``heads`` H.

    ``mask`` (B, N) or (B, R, N) is True at keys to attend to; ``bias`` (H, R, N) or (B, H, R, N) is added to the
    scores; ``dropout`` is the dropout probability of attention weights.
    """
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    attn_mask = _attention_mask(mask, bias, query)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(2)


def gather_positions(x: Tensor, positions: Tensor) -> Tensor:
    """Return x[b, positions[b]]: (B, R, D) of x (B, N, D) and positions (B, R)."""
    return x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))


def _attention_mask(mask: Tensor | None, bias: Tensor | None, query: Tensor) -> Tensor | None:
    if mask is not None:
        mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]  # (B, 1, 1 or R, N)
    if bias is None:
        return mask  # boolean: the fast path of the kernel
    bias = bias.to(query.dtype)
    if mask is None:
        return bias if bias.ndim == 4 else bias[None]
    excluded = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, float("-inf"))
    return bias + excluded
