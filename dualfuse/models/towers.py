"""The two towers of BridgeTower and METER: CLIP's image encoder and RoBERTa."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention import attend
from dualfuse.layers.embeddings import Stem, convolutions, resize_positions
from dualfuse.layers.post_norm import TextLayer
from dualfuse.models.base import MAX_DEPTH

HEAD = 64  # channels of a head of the image tower, whatever its width


@dataclass(frozen=True)
class ImageTowerConfig:
    """The numbers of a CLIP image encoder; the defaults are ViT-B/16. Every head has 64 channels."""

    width: int = 768
    depth: int = 12
    """METER's published weights have 11 blocks: the last one was found to hurt."""
    patch_size: int = 16
    image_size: tuple[int, int] = (288, 288)
    """Height and width the positions are made for; images of other sizes read resized positions."""
    stem: Stem = "linear"
    """How patches are made; "convolution" learns quicker at small scale (not in the paper)."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no tower."""
        if self.width % HEAD or not 1 <= self.depth <= MAX_DEPTH:
            raise DualfuseError(
                f"width is {self.width}, depth {self.depth}; give a multiple of {HEAD}, and 1 to {MAX_DEPTH}"
            )
        if any(side < self.patch_size or side % self.patch_size for side in self.image_size):
            raise DualfuseError(f"image_size {self.image_size} is no multiple of the patch, {self.patch_size}")


@dataclass(frozen=True)
class TextTowerConfig:
    """The numbers of a RoBERTa; the defaults are its base size."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    feed_forward: int = 3072
    vocab_size: int = 50_265
    text_length: int = 512
    """Longest text the positions know."""
    pad_id: int = 1
    """Id of the padding token; positions count the others, from pad + 1 on."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no tower."""
        if not 1 <= self.depth <= MAX_DEPTH:
            raise DualfuseError(f"depth is {self.depth}; give 1 to {MAX_DEPTH}")


class ImageTower(nn.Module):
    """CLIP's image encoder without its projection: pre-norm blocks, quick GELU, no dropout."""

    def __init__(self, cfg: ImageTowerConfig) -> None:
        """Linear weights are drawn as torch has it; who builds the tower draws them anew."""
        super().__init__()
        self.patch = cfg.patch_size
        self.window = (cfg.image_size[0] // cfg.patch_size, cfg.image_size[1] // cfg.patch_size)
        self.class_embedding = nn.Parameter(torch.empty(cfg.width).normal_(std=cfg.width**-0.5))
        self.positions = nn.Parameter(
            torch.empty(1 + self.window[0] * self.window[1], cfg.width).normal_(std=cfg.width**-0.5)
        )
        linear = cfg.stem == "linear"
        self.projection = (
            nn.Conv2d(3, cfg.width, cfg.patch_size, stride=cfg.patch_size, bias=False)
            if linear
            else convolutions(cfg.width, cfg.patch_size)
        )
        self.norm_before = nn.LayerNorm(cfg.width, eps=1e-5)
        self.blocks = nn.ModuleList(ImageBlock(cfg.width) for _ in range(cfg.depth))
        self.norm_after = nn.LayerNorm(cfg.width, eps=1e-5)

    def forward(self, images: Tensor, wanted: Sequence[int]) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        """Return the normalised states (B, 1 + P, W) after the blocks ``wanted``, in that order, and the grid of P.

        The states that the next block reads are not normalised. Blocks above the last wanted one are not run.
        """
        x, grid = self.embed(images)
        after = {}
        for number, block in enumerate(self.blocks[: 1 + max(wanted)]):
            x = block(x)
            if number in wanted:
                after[number] = self.norm_after(x)
        return tuple(after[number] for number in wanted), grid

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return class token and patches of images (B, 3, H, W), with positions and normalised, and their grid."""
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise DualfuseError(
                f"images of {height} x {width} pixels cannot be cut into patches of {self.patch}; "
                f"resize them to multiples of {self.patch}"
            )
        grid = (height // self.patch, width // self.patch)
        patches = self.projection(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(images), 1, -1)
        positions = resize_positions(self.positions[None], self.window, grid)
        return self.norm_before(torch.cat([first, patches], dim=1) + positions), grid


class ImageBlock(nn.Module):
    """x + attention(LN(x)), then x + FFN(LN(x)), with quick GELU."""

    def __init__(self, width: int) -> None:
        """``width`` is split over heads of 64 channels, and widened four times inside."""
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=1e-5)
        self.attention = PackedAttention(width)
        self.norm_2 = nn.LayerNorm(width, eps=1e-5)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, W)."""
        x = x + self.attention(self.norm_1(x))
        return x + self.down(quick_gelu(self.up(self.norm_2(x))))


class PackedAttention(nn.Module):
    """Self-attention without mask, queries, keys and values from one matrix, in that order."""

    def __init__(self, width: int) -> None:
        """``width`` is split over heads of 64 channels."""
        super().__init__()
        self.heads = width // HEAD
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, N, W)."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.projection(attend(query, key, value, heads=self.heads))


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x), CLIP's approximation of GELU."""
    return F.silu(1.702 * x) / 1.702  # silu keeps one tensor for the backward pass; a product of x would keep two


class TextTower(nn.Module):
    """RoBERTa without its pooler, which nothing reads."""

    def __init__(self, cfg: TextTowerConfig, *, dropout: float) -> None:
        """``dropout`` is that of embeddings, attention weights and branches."""
        super().__init__()
        self.words = RobertaEmbeddings(cfg, dropout=dropout)
        self.layers = nn.ModuleList(
            TextLayer(cfg.width, heads=cfg.heads, feed_forward=cfg.feed_forward, epsilon=1e-5, dropout=dropout)
            for _ in range(cfg.depth)
        )

    def forward(self, ids: Tensor, mask: Tensor, wanted: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the states (B, T, W) after the layers ``wanted``, in that order; ``mask`` (B, T) is True at tokens."""
        x, after = self.words(ids), {}
        for number, layer in enumerate(self.layers[: 1 + max(wanted)]):
            x = layer(x, mask)
            if number in wanted:
                after[number] = x
        return tuple(after[number] for number in wanted)


class RobertaEmbeddings(nn.Module):
    """LayerNorm(word + position + type row 0), then dropout; positions count the tokens that are no padding."""

    def __init__(self, cfg: TextTowerConfig, *, dropout: float) -> None:
        """The tables have the rows of published weights: those of positions start with pad + 1 that are not used."""
        super().__init__()
        self.pad, self.text_length = cfg.pad_id, cfg.text_length
        self.word = nn.Embedding(cfg.vocab_size, cfg.width)
        self.position = nn.Embedding(cfg.text_length + cfg.pad_id + 1, cfg.width)
        self.token_type = nn.Embedding(1, cfg.width)
        self.norm = nn.LayerNorm(cfg.width, eps=1e-5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Turn ids (B, T) into (B, T, W)."""
        if ids.shape[1] > self.text_length:
            raise DualfuseError(
                f"a text of {ids.shape[1]} tokens is longer than the {self.text_length} positions of the model; "
                "cut it or set text_length of the model higher"
            )
        is_token = (ids != self.pad).long()
        positions = self.pad + is_token.cumsum(1) * is_token
        return self.dropout(self.norm(self.word(ids) + self.position(positions) + self.token_type.weight[0]))
