"""Blocks that read an image once and a text word by word, with keys and values that are not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dualfuse.layers.attention import LayerKVCache
from dualfuse.layers.blocks import Block, one_expert
from dualfuse.models.base import KVCache

Stack = Sequence[tuple[Block, str]]
"""Blocks, each with the expert that takes the tokens; one with an attention of that name sees that modality alone."""


def prefill(stack: Stack, x: Tensor, bias: Tensor | None) -> tuple[LayerKVCache, ...]:
    """Return what each layer remembers of x (B, N, D), all of which sees all of it; ``bias`` is (L, H, N, N)."""
    remembered: list[LayerKVCache] = []
    for layer, (block, expert) in enumerate(stack):
        remembered.append(block.keys_and_values(x, expert))
        if layer < len(stack) - 1:  # the states of the last layer are seen by none
            x = block(x, one_expert(expert, x), bias=None if bias is None else bias[layer])
    return tuple(remembered)


def decode_step(stack: Stack, past: KVCache, new: Tensor) -> tuple[Tensor, KVCache]:
    """Return the states (R, n, D) of ``new`` words, each of which sees the past and the words before it.

    The past that comes with them has all of them but the last.
    """
    start, patches = len(past), len(past.image[0])
    end = start + new.shape[1]
    attention_mask = new.new_ones(new.shape[1], patches + end, dtype=torch.bool).tril(patches + start)[None]
    x, words = new, list[LayerKVCache]()
    for layer, (block, expert) in enumerate(stack):
        before = past.words[layer : layer + 1]
        words.append(_joined(*before, block.keys_and_values(x[:, :-1], expert)))
        first = patches if expert in block.attention else 0  # of the keys that this layer sees
        image = () if first else (past.image[layer].take(past.about),)
        x = block(
            x,
            one_expert(expert, x),
            mask=attention_mask[..., first:],
            bias=None if past.bias is None else past.bias[layer, :, start:end, first : patches + end],
            before=_joined(*image, *before) if image or before else None,
        )
    return x, replace(past, words=tuple(words))


def _joined(first: LayerKVCache, *later: LayerKVCache) -> LayerKVCache:
    return first.append(*later) if later else first
