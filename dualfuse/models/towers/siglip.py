"""SigLIP's two encoders (arXiv 2303.15343), which SigLIP 2 of fixed resolution (arXiv 2502.14786) shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention_flow import AttentionFlow
from dualfuse.layers.embeddings import TextPositions, patch_grid, resize_positions
from dualfuse.layers.pre_norm import Activation, AttentionPooling
from dualfuse.layers.resizing import Resizable, times
from dualfuse.models.towers.base import ImageTowerConfig, TextTowerConfig, TowerOutput
from dualfuse.models.towers.transformer import PreNormTower, block_options, check_sizes


@dataclass(frozen=True)
class SiglipViTConfig(ImageTowerConfig):
    """The sizes of a SigLIP image encoder; the defaults are its base size."""

    width: int = 768
    depth: int = 12
    patch_size: int = 16
    image_size: tuple[int, int] = (224, 224)
    """Height and width that the positions are made for; other image sizes use resized positions."""
    heads: int = 12
    feed_forward: int = 3072
    activation: Activation = "gelu_tanh"
    layer_norm_eps: float = 1e-6
    """Epsilon of LayerNorms."""

    def __post_init__(self) -> None:
        """Validate the sizes."""
        check_sizes(self.width, self.heads, self.depth)
        if any(side < self.patch_size for side in self.image_size):
            raise DualfuseError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")

    def build(self) -> SiglipViT:
        """Return the tower with initial weights."""
        return SiglipViT(self)


class SiglipViT(PreNormTower, Resizable):
    """A Vision Transformer without class token, pooled by one learned query that attends to its patches."""

    def __init__(self, cfg: SiglipViTConfig) -> None:
        """Add positions for the patches of an image of ``image_size``."""
        super().__init__()
        self.patch_size, self.image_size = cfg.patch_size, cfg.image_size
        self.window = (cfg.image_size[0] // cfg.patch_size, cfg.image_size[1] // cfg.patch_size)
        self.positions = nn.Parameter(
            torch.empty(self.window[0] * self.window[1], cfg.width).normal_(std=cfg.width**-0.5)
        )
        self.projection = nn.Conv2d(3, cfg.width, cfg.patch_size, stride=cfg.patch_size)
        self.add_blocks(cfg)
        self.pooling = AttentionPooling(cfg.width, **block_options(cfg))

    def forward(self, images: Tensor, layers: Sequence[int]) -> TowerOutput:
        """Return the normalized states (B, 1 + P, width) after ``layers`` of images (B, 3, H, W), their mean first."""
        x, grid = self.embed(images)
        states = self.run(x, layers)
        pooled = self.pooling(states[-1]) if layers[-1] == len(self.blocks) - 1 else None
        return TowerOutput(tuple(map(_with_mean, states)), grid, pooled)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the embeddings (B, P, width) of patches, and their grid.

        Of images of the size that the positions are made for, pixels beyond the last whole patch are not read: SigLIP
        so400m has patches of 14 in 384 pixels. Other sizes must be multiples of the patch.
        """
        own_size = tuple(images.shape[-2:]) == self.image_size
        grid = self.window if own_size else patch_grid(images, self.patch_size)
        patches = self.projection(images).flatten(2).transpose(1, 2)
        return patches + _resize(self.positions, self.window, grid), grid

    def resize_tensor(
        self, name: str, tensor: Tensor, source: SiglipViT, *, has_text: bool
    ) -> tuple[Tensor, str] | None:
        """Resize the positions to the grid of this tower."""
        if name != "positions" or source.window == self.window:
            return None
        rule = f"patches {times(source.window)} to {times(self.window)}, bicubic"
        return _resize(tensor, source.window, self.window), rule

    def attention_flow(self, flow: AttentionFlow, x: Tensor) -> list[Tensor]:
        """Return the relevance (1 + P, M) after each block; the first row is the mean over patches."""
        return [torch.cat([state.mean(0, keepdim=True), state]) for state in flow.stack(self.blocks, x[1:])]


@dataclass(frozen=True)
class SiglipTextConfig(TextTowerConfig):
    """The sizes of a SigLIP text encoder; the defaults are its base size."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    feed_forward: int = 3072
    vocab_size: int = 32_000
    text_length: int = 64
    """Number of positions: every text is padded to this length, and attends to its padding."""
    projection_width: int = 768
    """Width of the pooled state, after a linear map."""
    pad_id: int = 1
    """Id of the padding token, which the model reads: 1 for SigLIP, 0 for SigLIP 2."""
    activation: Activation = "gelu_tanh"
    layer_norm_eps: float = 1e-6
    """Epsilon of LayerNorms."""

    def __post_init__(self) -> None:
        """Validate the sizes."""
        check_sizes(self.width, self.heads, self.depth)
        if not 0 <= self.pad_id < self.vocab_size:
            raise DualfuseError(f"pad_id is {self.pad_id}; give an id below vocab_size, {self.vocab_size}")

    @property
    def pooled_width(self) -> int:
        """Width of the pooled state."""
        return self.projection_width

    def build(self, dropout: float) -> SiglipText:
        """Return the tower with initial weights; SigLIP has no dropout, so ``dropout`` changes nothing."""
        return SiglipText(self)


class SiglipText(PreNormTower):
    """A bidirectional Transformer over texts that are padded to one length, pooled at the last position."""

    def __init__(self, cfg: SiglipTextConfig) -> None:
        """Add positions for texts of ``text_length``."""
        super().__init__()
        self.pad_id, self.text_length = cfg.pad_id, cfg.text_length
        self.words = TextPositions(cfg.width, vocabulary=cfg.vocab_size, text_length=cfg.text_length)
        self.add_blocks(cfg)
        self.projection = nn.Linear(cfg.width, cfg.projection_width)

    def forward(self, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> TowerOutput:
        """Return the normalized states (B, T, width) after ``layers`` of ids (B, T); ``mask`` is True at tokens.

        As in training, a text is padded to the length of the model with its padding token, and attends to it; the
        pooled state is a linear map of the last position, which is often padding.
        """
        length = ids.shape[1]
        ids = F.pad(ids.masked_fill(~mask, self.pad_id), (0, max(0, self.text_length - length)), value=self.pad_id)
        states = self.run(self.words(ids), layers)
        pooled = self.projection(states[-1][:, -1]) if layers[-1] == len(self.blocks) - 1 else None
        return TowerOutput(tuple(state[:, :length] for state in states), pooled=pooled)

    def attention_flow(self, flow: AttentionFlow, x: Tensor) -> list[Tensor]:
        """Return the relevance (T, M) after each block; that of padding starts at zero."""
        padded = F.pad(x, (0, 0, 0, self.text_length - len(x)))
        return [state[: len(x)] for state in flow.stack(self.blocks, padded)]


def _with_mean(patches: Tensor) -> Tensor:
    return torch.cat([patches.mean(1, keepdim=True), patches], dim=1)


def _resize(positions: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Return positions (P, width) without class token, resized to another grid (bicubic)."""
    if source == target:
        return positions
    return resize_positions(F.pad(positions, (0, 0, 1, 0))[None], source, target)[0, 1:]
