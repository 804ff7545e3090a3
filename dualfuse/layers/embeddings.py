"""Patch and text embeddings, and absolute positions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.errors import DualfuseError
from dualfuse.layers.resizing import Resizable, cut_positions, extend_positions, times

Stem = Literal["linear", "convolution"]


@dataclass(frozen=True)
class MaskedPatches:
    """Patches to hide from a model: ``token`` (1, 1, D) replaces those where ``mask`` (B, P) is True."""

    mask: Tensor
    token: Tensor


def patch_grid(images: Tensor, patch: int) -> tuple[int, int]:
    """Return the height and width in patches of images (B, 3, H, W); raises ``DualfuseError`` unless they fit."""
    height, width = images.shape[-2:]
    if height % patch or width % patch:
        raise DualfuseError(
            f"images of {height} x {width} pixels cannot be cut into patches of {patch}; "
            f"resize them to multiples of {patch}"
        )
    return height // patch, width // patch


class PatchEmbedding(Resizable):
    """Turns an image into a class token and its patches, row by row."""

    def __init__(self, width: int, *, patch: int, stem: Stem, positions: tuple[int, int] | None) -> None:
        """``positions`` is the grid of learned absolute positions, None for none."""
        super().__init__()
        self.patch, self.window = patch, positions
        self.projection = nn.Conv2d(3, width, patch, stride=patch) if stem == "linear" else convolutions(width, patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        if positions is not None:
            self.position = nn.Parameter(torch.empty(1, 1 + positions[0] * positions[1], width))

    def forward(self, images: Tensor, hidden: MaskedPatches | None = None) -> tuple[Tensor, tuple[int, int]]:
        """Turn (B, 3, H, W) into (B, 1 + P, D) and the grid of P patches, of which some may be ``hidden``."""
        grid = patch_grid(images, self.patch)
        if hidden is not None:  # a convolutional stem reads beyond the border of a patch
            images = images.masked_fill(_pixels(hidden.mask, grid, self.patch), 0)
        patches = self.projection(images).flatten(2).transpose(1, 2)
        if hidden is not None:
            patches = torch.where(hidden.mask[..., None], hidden.token.to(patches.dtype), patches)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)
        if self.window is None:
            return tokens, grid
        return tokens + resize_positions(self.position, self.window, grid), grid

    def resize_tensor(
        self, name: str, tensor: Tensor, source: PatchEmbedding, *, has_text: bool
    ) -> tuple[Tensor, str] | None:
        """Resize the absolute positions to the grid of this module."""
        return resize_grid(tensor, source.window, self.window) if name == "position" else None


def _pixels(mask: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Return (B, 1, H, W), True at the pixels of the patches where ``mask`` (B, P) is True."""
    if mask.shape[1] != grid[0] * grid[1]:
        raise DualfuseError(
            f"the mask has {mask.shape[1]} patches, but the images have {grid[0]} x {grid[1]}; set the task's patch to "
            f"that of the model, {patch}"
        )
    return mask.unflatten(1, grid)[:, None].repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)


def convolutions(width: int, patch: int) -> nn.Module:
    """Return stride-2 convolutions down to one vector per patch, a stem that learns faster from few images."""
    steps = patch.bit_length() - 1
    if 2**steps != patch:
        raise DualfuseError(f"a convolutional stem needs a patch size that is a power of two, not {patch}")
    channels = [3, *(max(16, width >> (steps - 1 - step)) for step in range(steps))]
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(1, after), nn.GELU()]
    return nn.Sequential(*layers, nn.Conv2d(channels[-1], width, 1))


def resize_positions(position: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Return absolute positions (1, 1 + hw, D) resized to another grid (bicubic); the class token's is unchanged."""
    if source == target:
        return position
    first, rest = position[:, :1], position[:, 1:]
    square = rest.transpose(1, 2).unflatten(2, source)
    resized = F.interpolate(square.float(), size=target, mode="bicubic", align_corners=False).to(position.dtype)
    return torch.cat([first, resized.flatten(2).transpose(1, 2)], dim=1)


def resize_grid(
    positions: Tensor, source: tuple[int, int] | None, target: tuple[int, int] | None
) -> tuple[Tensor, str] | None:
    """Return absolute positions (..., 1 + hw, D) of another grid, and the rule; None if both grids are the same."""
    if source is None or target is None or source == target:
        return None
    resized = resize_positions(positions.view(1, *positions.shape[-2:]), source, target)
    shape = positions.shape[:-2] + resized.shape[-2:]
    return resized.view(shape), f"patches {times(source)} to {times(target)}, bicubic"


class PositionedText(Resizable):
    """Base of text embeddings with a table ``word`` of tokens, and perhaps a table ``position``.

    The first ``unused`` rows of ``position`` stand for no token.
    """

    embeds_text = True
    position: Any  # Any: an nn.Embedding, or None
    unused: int = 0

    def check_length(self, ids: Tensor) -> None:
        """Raise DualfuseError for ids (B, T) of texts that have more tokens than there are positions."""
        if self.position is not None and ids.shape[1] > self.position.num_embeddings - self.unused:
            raise DualfuseError(
                f"a text of {ids.shape[1]} tokens is longer than the {self.position.num_embeddings - self.unused} "
                "positions of the model; truncate it or set text_length of the model higher"
            )

    def resize_tensor(
        self, name: str, tensor: Tensor, source: PositionedText, *, has_text: bool
    ) -> tuple[Tensor, str] | None:
        """Drop the positions beyond those of this module."""
        return cut_positions(name, tensor, self.position, self.unused)

    def extend_tensor(self, name: str, tensor: Tensor, source: PositionedText) -> Tensor | None:
        """Add the positions that this module has beyond those of ``source``."""
        return extend_positions(tensor, self.position, self.unused) if name.startswith("position.") else None


class TextPositions(PositionedText):
    """The sum of word and position embeddings; positions count from 0."""

    position: nn.Embedding

    def __init__(self, width: int, *, vocabulary: int, text_length: int, unused: int = 0) -> None:
        """``text_length`` is the longest text, in tokens."""
        super().__init__()
        self.unused = unused
        self.word = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(text_length + unused, width)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (B, T) as (B, T, width)."""
        self.check_length(ids)
        return self.word(ids) + self.positions(ids)

    def positions(self, ids: Tensor) -> Tensor:
        """Return the positions, (T, width) or (B, T, width), of ids (B, T)."""
        return self.position.weight[: ids.shape[1]]


class TextEmbedding(PositionedText):
    """BERT's embedding: LayerNorm(word + type 0 (+ position)) with epsilon 1e-12, then dropout."""

    def __init__(self, width: int, *, vocabulary: int, positions: int, dropout: float) -> None:
        """``positions`` is the number of learned absolute positions; 0: none."""
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.token_type = nn.Embedding(2, width)  # published weights have two types, of which 0 is used
        self.position = nn.Embedding(positions, width) if positions else None
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Turn ids (B, T) into (B, T, D)."""
        self.check_length(ids)
        embedded = self.word(ids) + self.token_type.weight[0]
        if self.position is not None:
            embedded = embedded + self.position.weight[: ids.shape[1]]
        return self.dropout(self.norm(embedded))
