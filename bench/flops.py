"""Counts the arithmetic of a training step: by formula what an objective needs, and by counting what was done.

Two operations per multiplication and addition, of linear layers, convolutions and attention; backward is twice forward,
but for the first convolution, whose input needs no gradient. Texts have their own lengths, nothing is computed that
nobody reads, and nothing twice: what a step does beyond that is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.pretrain.pair_batch import PairBatch
from dualfuse.tasks.pretrain.pairs import PairsConfig


@dataclass(frozen=True)
class Lengths:
    """Of an average pair: its tokens, and its masked words."""

    words: float
    masked: float

    @classmethod
    def of(cls, batch: PairBatch) -> Lengths:
        """Count those of a batch."""
        pairs = len(batch["mask"])
        return cls(int(batch["mask"].sum()) / pairs, int((batch["targets"] != -100).sum()) / pairs)


def block(width: int, seen: float, rows: float) -> float:
    """Return the forward work of self-attention and a fourfold feed-forward for ``rows`` of the tokens ``seen``."""
    return attention(width, seen, rows) + 16 * rows * width**2


def attention(width: int, seen: float, rows: float) -> float:
    """Return that of attention: queries and outputs of ``rows``, keys and values of what is ``seen``, and scores."""
    return 4 * rows * width**2 + 4 * seen * width**2 + 4 * rows * seen * width


def vlmo(model: VLMoConfig, task: PairsConfig, pair: Lengths) -> float:
    """Return the operations that a training step of a VLMo needs for each pair."""
    width, depth = model.width, model.depth
    patches = _patches(model.image_size, model.patch_size)
    kept, both = max(1, round((1 - task.patch_dropout) * patches)), 1 + patches + pair.words
    two_views = task.itc_features == "all" and model.vl_expert_start < depth

    def alone(tokens: float) -> float:
        branch = (depth - 1 - model.vl_expert_start) * block(width, tokens, tokens)
        plain = (depth - 1) * block(width, tokens, tokens) + block(width, tokens, 1)
        second = branch + block(width, tokens, 1) if two_views else 0.0
        return plain + second + (1 + two_views) * 2 * width**2  # and the projections

    def fused(rows: float) -> float:
        return (depth - 1) * block(width, both, both) + block(width, both, rows)

    words = pair.masked * _word_head(width, model.vocab_size)
    shared = bool(task.mlm_weight and task.itm_weight and task.itm_on_masked_text)
    forward = alone(1 + kept) + alone(pair.words) if task.itc_weight else 0.0
    if task.mlm_weight:
        forward += fused(pair.masked + shared) + words
    if task.itm_weight:
        forward += (task.negatives_per_pair + (not shared)) * fused(1) + (1 + task.negatives_per_pair) * 2 * width**2
    return 3 * forward + 2 * _embedding(patches, model.patch_size, width)


def bridgetower(model: BridgeTowerConfig, task: PairsConfig, pair: Lengths) -> float:
    """Return the operations that a training step of a BridgeTower needs for each pair, towers run once."""
    assert isinstance(model.image, CLIPViTConfig)
    width, wide, text_wide = model.width, model.image.width, model.text.width
    patches, words = _patches(model.image.image_size, model.image.patch_size), pair.words
    image = 1 + patches

    def cross(rows: float, own: float, other: float) -> float:
        return block(width, own, rows) + attention(width, other, rows)

    def fused(rows: float, images: float) -> float:
        inner = (model.layers - 1) * (cross(words, words, image) + cross(image, image, words))
        return inner + cross(rows, words, image) + (cross(images, image, words) if images else 0.0)

    def text_tower(last: float) -> float:
        return (model.text.depth - 1) * block(text_wide, words, words) + block(text_wide, words, last)

    fuses, fed = task.mlm_weight or task.itm_weight, len(model.resolved_tower_layers)
    forward = (model.image.depth - 1) * block(wide, image, image) + block(wide, image, image if fuses else 1)
    if fuses:
        forward += 2 * fed * image * wide * width
    texts = bool(task.mlm_weight) + bool(task.itm_weight or task.itc_weight)  # masked, and as they are
    forward += texts * (text_tower(words if fuses else 1) + (2 * fed * words * text_wide * width if fuses else 0))
    shared = bool(task.mlm_weight and task.itm_weight and task.itm_on_masked_text)
    if task.mlm_weight:
        forward += fused(pair.masked + shared, shared) + pair.masked * _word_head(width, model.text.vocab_size)
    if task.itm_weight:
        passes = task.negatives_per_pair + (not shared)
        forward += passes * fused(1, 1) + (1 + task.negatives_per_pair) * 4 * width**2
    if task.itc_weight:
        size = task.itc_head.width or text_wide
        forward += 2 * size * (wide + text_wide)
    return 3 * forward + 2 * _embedding(patches, model.image.patch_size, wide)


def _patches(size: tuple[int, int], patch: int) -> int:
    return (size[0] // patch) * (size[1] // patch)


def _embedding(patches: int, patch: int, width: int) -> float:
    return 2 * patches * 3 * patch**2 * width


def _word_head(width: int, vocabulary: int) -> float:
    return 2 * width**2 + 2 * width * vocabulary


def counted(step: Callable[[], object]) -> int:
    """Run a step and gives the operations of all its matrix products, convolutions and attention."""
    names = torch.ops.aten
    fused = {
        names._scaled_dot_product_flash_attention_for_cpu: _scores(4),
        names._scaled_dot_product_flash_attention_for_cpu_backward: _scores(8, gradient=True),
    }
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        step()
    return counter.get_total_flops()


def _scores(factor: int, *, gradient: bool = False) -> Callable[..., int]:
    """Count the fused kernel of the CPU, which torch's counter leaves out: queries (B, H, R, D), keys (B, H, N, D)."""

    def count(*shapes: tuple[int, ...], out_shape: object = None, **_: object) -> int:
        query, key = shapes[1:3] if gradient else shapes[:2]
        batch, heads, rows, channels = query
        return factor * batch * heads * rows * key[2] * channels

    return count
