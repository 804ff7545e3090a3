"""Incremental decoding: an image is read once and a text token by token, with cached keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dualfuse.layers.attention import LayerKVCache
from dualfuse.layers.blocks import Block, one_expert

Stack = Sequence[tuple[Block, str]]
"""Blocks, each with the expert of the tokens; a block with an attention of that name attends to that modality alone."""


@dataclass(frozen=True)
class KVCache:
    """Keys and values of images and of the text tokens so far, one entry per layer.

    ``image`` caches B images; text r of R attends to the image ``image_index[r]``. ``text`` caches the first t tokens
    of the R texts (empty at the start). ``bias`` (L, H, T, P + T) is the relative bias of texts of up to T tokens,
    whose keys are the image's, then the text's; None for a model without one.
    """

    image: tuple[LayerKVCache, ...]
    image_index: Tensor
    bias: Tensor | None = None
    text: tuple[LayerKVCache, ...] = ()

    def __len__(self) -> int:
        """Return the number of cached text tokens t."""
        return len(self.text[0]) if self.text else 0

    def take(self, index: Tensor) -> KVCache:
        """Return the cache of the texts ``index`` (K,), in that order; images are not copied."""
        text = tuple(layer.take(index) for layer in self.text)
        return replace(self, image_index=self.image_index.index_select(0, index), text=text)


def prefill(stack: Stack, x: Tensor, bias: Tensor | None) -> tuple[LayerKVCache, ...]:
    """Return the keys and values of each layer for x (B, N, D), with full attention; ``bias`` is (L, H, N, N)."""
    cache: list[LayerKVCache] = []
    for layer, (block, expert) in enumerate(stack):
        cache.append(block.keys_and_values(x, expert))
        if layer < len(stack) - 1:  # no layer reads the states of the last one
            x = block(x, one_expert(expert, x), bias=None if bias is None else bias[layer])
    return tuple(cache)


def decode_step(stack: Stack, cache: KVCache, new: Tensor) -> tuple[Tensor, KVCache]:
    """Return the states (R, n, D) of ``new`` text tokens, and the cache with all of them but the last.

    Each new token attends to its image, to cached tokens, to new tokens before it, and to itself.
    """
    start, patches = len(cache), len(cache.image[0])
    end = start + new.shape[1]
    attention_mask = new.new_ones(new.shape[1], patches + end, dtype=torch.bool).tril(patches + start)[None]
    x, text = new, list[LayerKVCache]()
    for layer, (block, expert) in enumerate(stack):
        cached_text = cache.text[layer : layer + 1]
        text.append(_concatenated(*cached_text, block.keys_and_values(x[:, :-1], expert)))
        first_key = patches if expert in block.attention else 0  # a text-only attention has no image keys
        image = () if first_key else (cache.image[layer].take(cache.image_index),)
        x = block(
            x,
            one_expert(expert, x),
            mask=attention_mask[..., first_key:],
            bias=None if cache.bias is None else cache.bias[layer, :, start:end, first_key : patches + end],
            cache=_concatenated(*image, *cached_text) if image or cached_text else None,
        )
    return x, replace(cache, text=tuple(text))


def _concatenated(first: LayerKVCache, *later: LayerKVCache) -> LayerKVCache:
    return first.append(*later) if later else first
