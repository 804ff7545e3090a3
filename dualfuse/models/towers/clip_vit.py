"""CLIP's Vision Transformer (arXiv 2103.00020), the image tower of BridgeTower and METER."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.embeddings import Stem, convolutions, patch_grid, resize_grid, resize_positions
from dualfuse.layers.pre_norm import Activation
from dualfuse.layers.resizing import Resizable
from dualfuse.models.base import MAX_DEPTH
from dualfuse.models.towers.base import ImageTowerConfig, TowerOutput
from dualfuse.models.towers.transformer import PreNormTower

HEAD_WIDTH = 64  # channels of an attention head in OpenAI's models, at every width


@dataclass(frozen=True)
class CLIPViTConfig(ImageTowerConfig):
    """The sizes of a CLIP image encoder; the defaults are ViT-B/16."""

    width: int = 768
    depth: int = 12
    """Number of blocks. METER's published weights have 11: its authors found that the last one hurts."""
    patch_size: int = 16
    image_size: tuple[int, int] = (288, 288)
    """Height and width that the positions are made for; other image sizes use resized positions."""
    stem: Stem = "linear"
    """Patch embedding: one linear map, or "convolution", which trains faster at small scale (not in the paper)."""
    heads: int = 0
    """Attention heads; 0: heads of 64 channels, as in OpenAI's models."""
    feed_forward: int = 0
    """Width between the two layers of a feed-forward network; 0: four times ``width``."""
    activation: Activation = "quick_gelu"
    """quick_gelu: OpenAI's; gelu: exact, as in most models of open_clip."""
    layer_norm_eps: float = 1e-5
    """Epsilon of LayerNorms."""

    def __post_init__(self) -> None:
        """Validate the sizes."""
        unit = self.heads or HEAD_WIDTH
        if unit < 0 or self.width % unit or not 1 <= self.depth <= MAX_DEPTH:
            heads = f" with {self.heads} heads" if self.heads else ""
            raise DualfuseError(
                f"width is {self.width}{heads}, depth {self.depth}; give a multiple of {unit}, and 1 to {MAX_DEPTH}"
            )
        if any(side < self.patch_size or side % self.patch_size for side in self.image_size):
            raise DualfuseError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def resolved(self) -> CLIPViTConfig:
        """The config with the numbers of heads and of channels that 0 stands for."""
        heads, feed_forward = self.heads or self.width // HEAD_WIDTH, self.feed_forward or 4 * self.width
        return replace(self, heads=heads, feed_forward=feed_forward)

    @staticmethod
    def of_sizes(*, width: int, heads: int, feed_forward: int, **others: Any) -> CLIPViTConfig:  # Any: the other fields
        """Return a config with 0 for the usual number of heads and of channels; inverts :attr:`resolved`."""
        usual_heads, usual_width = heads * HEAD_WIDTH == width, feed_forward == 4 * width
        return CLIPViTConfig(
            width, heads=0 if usual_heads else heads, feed_forward=0 if usual_width else feed_forward, **others
        )

    def build(self) -> CLIPViT:
        """Return the tower with initial weights."""
        return CLIPViT(self)


class CLIPViT(PreNormTower, Resizable):
    """CLIP's image encoder without its projection: pre-norm blocks, no dropout."""

    def __init__(self, cfg: CLIPViTConfig) -> None:
        """Initialize embeddings as CLIP does."""
        super().__init__()
        self.patch_size = cfg.patch_size
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
        self.norm_before = nn.LayerNorm(cfg.width, eps=cfg.layer_norm_eps)
        self.add_blocks(cfg.resolved)

    def forward(self, images: Tensor, layers: Sequence[int]) -> TowerOutput:
        """Return the normalized states (B, 1 + P, width) after ``layers`` of images (B, 3, H, W)."""
        x, grid = self.embed(images)
        return TowerOutput(tuple(self.run(x, layers)), grid)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the normalized embeddings (B, 1 + P, width) of class token and patches, and the grid of patches."""
        grid = patch_grid(images, self.patch_size)
        patches = self.projection(images).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(len(images), 1, -1)
        positions = resize_positions(self.positions[None], self.window, grid)
        return self.norm_before(torch.cat([class_token, patches], dim=1) + positions), grid

    def resize_tensor(self, name: str, tensor: Tensor, source: CLIPViT, *, has_text: bool) -> tuple[Tensor, str] | None:
        """Resize the positions to the grid of this tower."""
        return resize_grid(tensor, source.window, self.window) if name == "positions" else None
