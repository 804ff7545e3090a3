"""A small vector-quantized autoencoder, which trains visual tokens on the user's own images.

As VQ-VAE, with the short normalized codes of ViT-VQGAN, which keep most of the codebook in use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.errors import DualfuseError
from dualfuse.layers.vq.codebook import Codebook
from dualfuse.layers.vq.visual_tokenizer import VisualTokenizer, check_strides


@dataclass(frozen=True)
class AutoencoderConfig:
    """Size of an autoencoder; the defaults are ours, for the grid of DALL-E's tokens."""

    codes: int = 8192
    """Number of codes."""
    stride: int = 8
    """Side of the square that a code stands for, in pixels; a power of two."""
    width: int = 128
    """Channels at 1/2 of the image size; doubled at 1/4 and at 1/8, then constant."""
    blocks: int = 2
    """Residual blocks at the smallest size, in the encoder and in the decoder."""
    code_width: int = 32
    """Width of a code embedding."""

    def __post_init__(self) -> None:
        """Validate the sizes."""
        if self.stride < 2 or self.stride & (self.stride - 1):
            raise DualfuseError(f"stride is {self.stride}; set it to a power of two from 2")
        if min(self.codes, self.code_width, self.blocks) < 1 or self.width < 8 or self.width % 8:
            raise DualfuseError(
                f"codes={self.codes}, code_width={self.code_width}, blocks={self.blocks}, width={self.width}; set "
                "each to at least 1, and width to a multiple of 8"
            )

    def build(self) -> Autoencoder:
        """Return the autoencoder with its initial weights."""
        return Autoencoder(self)


@dataclass(frozen=True)
class Reconstruction:
    """Images (B, 3, H, W) from 0 to 1, decoded from their ``codes`` (B, P).

    ``commitment`` is the mean squared error between encoder outputs and their code embeddings.
    """

    images: Tensor
    codes: Tensor
    commitment: Tensor


class Autoencoder(VisualTokenizer):
    """A convolutional encoder, a codebook, and a convolutional decoder."""

    def __init__(self, cfg: AutoencoderConfig) -> None:
        """Weights have torch's default initialization."""
        super().__init__()
        self.codes, self.stride = cfg.codes, cfg.stride
        halvings = cfg.stride.bit_length() - 1
        widths = [min(cfg.width << step, 4 * cfg.width) for step in range(halvings)]
        self.encoder = nn.Sequential(
            *_downwards([3, *widths]),
            *(_Residual(widths[-1]) for _ in range(cfg.blocks)),
            nn.Conv2d(widths[-1], cfg.code_width, 1),
        )
        self.codebook = Codebook(cfg.codes, cfg.code_width)
        self.decoder = nn.Sequential(
            nn.Conv2d(cfg.code_width, widths[-1], 1),
            *(_Residual(widths[-1]) for _ in range(cfg.blocks)),
            *_upwards([*reversed(widths), widths[0]]),
            nn.Conv2d(widths[0], 3, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the codes (B, h * w) of images (B, 3, h s, w s) from 0 to 1, for the stride s."""
        return self._quantize(images)[1]

    def reconstruct(self, images: Tensor) -> Reconstruction:
        """Encode and decode images (B, 3, h s, w s) from 0 to 1; gradients pass the codes straight through."""
        embeddings, codes = self._quantize(images)
        quantized = self.codebook.embeddings[codes].view(embeddings.shape)
        commitment = F.mse_loss(embeddings, quantized)
        straight_through = embeddings + (quantized - embeddings).detach()
        images = (self.decoder(straight_through.permute(0, 3, 1, 2)) + 1) / 2
        return Reconstruction(images, codes, commitment)

    def fsdp_blocks(self) -> Iterable[nn.Module]:
        """List the modules to shard, checkpoint and compile one by one."""
        return (self.encoder, self.decoder)

    def fusion_modules(self) -> Iterable[nn.Module]:
        """Return no modules: the autoencoder has no fusion encoder."""
        return ()

    def _quantize(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalized embeddings (B, h, w, D) and their codes (B, h * w)."""
        check_strides(images, self.stride)
        encoded = self.encoder(2 * images - 1).permute(0, 2, 3, 1)
        with torch.autocast(encoded.device.type, enabled=False):  # half precision would select other codes
            embeddings = F.normalize(encoded.float(), dim=-1)
            return embeddings, self.codebook(embeddings.flatten(0, 2)).view(len(images), -1)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_active(width), nn.Conv2d(width, width, 3, padding=1), *_active(width), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _downwards(widths: list[int]) -> Iterable[nn.Module]:
    yield nn.Conv2d(widths[0], widths[1], 4, stride=2, padding=1)
    for before, after in pairwise(widths[1:]):
        yield from (*_active(before), nn.Conv2d(before, after, 4, stride=2, padding=1))


def _upwards(widths: list[int]) -> Iterable[nn.Module]:
    for before, after in pairwise(widths):
        yield from (*_active(before), nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1))
    yield from _active(widths[-1])


def _active(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(8, width), nn.SiLU()
