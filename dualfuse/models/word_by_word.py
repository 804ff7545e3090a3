"""Blocks that read a picture once and a text word by word, with keys and values that are not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dualfuse.layers.attention import Remembered
from dualfuse.layers.blocks import Block, one_expert
from dualfuse.models.base import Past

Stack = Sequence[tuple[Block, str]]
"""Blocks, each with the expert that takes the tokens; one with an attention of that name sees that modality alone."""


def remember(stack: Stack, x: Tensor, bias: Tensor | None) -> tuple[Remembered, ...]:
    """Gives what each layer remembers of x (B, N, D), all of which sees all of it; ``bias`` is (L, H, N, N)."""
    remembered: list[Remembered] = []
    for layer, (block, expert) in enumerate(stack):
        remembered.append(block.remember(x, expert))
        if layer < len(stack) - 1:  # the states of the last layer are seen by none
            x = block(x, one_expert(expert, x), bias=None if bias is None else bias[layer])
    return tuple(remembered)


def go_on(stack: Stack, past: Past, new: Tensor) -> tuple[Tensor, Past]:
    """Gives the states (R, n, D) of ``new`` words, each of which sees the past and the words before it.

    The past that comes with them has all of them but the last.
    """
    start, patches = len(past), len(past.image[0])
    end = start + new.shape[1]
    sees = new.new_ones(new.shape[1], patches + end, dtype=torch.bool).tril(patches + start)[None]
    x, words = new, list[Remembered]()
    for layer, (block, expert) in enumerate(stack):
        before = past.words[layer : layer + 1]
        words.append(_joined(*before, block.remember(x[:, :-1], expert)))
        first = patches if expert in block.attention else 0  # of the keys that this layer sees
        picture = () if first else (past.image[layer].take(past.about),)
        x = block(
            x,
            one_expert(expert, x),
            mask=sees[..., first:],
            bias=None if past.bias is None else past.bias[layer, :, start:end, first : patches + end],
            before=_joined(*picture, *before) if picture or before else None,
        )
    return x, replace(past, words=tuple(words))


def _joined(first: Remembered, *later: Remembered) -> Remembered:
    return first.then(*later) if later else first
