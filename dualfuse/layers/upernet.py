"""UPerNet (arXiv 1807.10221): a class for every pixel, from maps of features at four strides.

As BEiT uses it on ADE20K (microsoft/unilm, beit/semantic_segmentation; mmsegmentation's UPerHead and FCNHead): the maps
of four layers are brought to a quarter, half, one and two patches; the decoder is as wide as the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.errors import DualfuseError
from dualfuse.layers.batch_norm import BatchNorm

SCALES = (1, 2, 3, 6)
"""Sides of the grids that the coarsest map is pooled to."""
AUXILIARY_WIDTH = 256
CLASSIFIER_STD = 0.01


class FourStrides(nn.Module):
    """Four maps of one size become a pyramid: four times as fine, twice, as they are, half as fine."""

    def __init__(self, width: int) -> None:
        """``width`` D is kept."""
        super().__init__()
        self.finest = nn.Sequential(_doubled(width), BatchNorm(width), nn.GELU(), _doubled(width))
        self.fine = _doubled(width)
        self.coarse = nn.MaxPool2d(2)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Turn four (B, D, h, w) into (B, D, 4h, 4w), (B, D, 2h, 2w), (B, D, h, w) and (B, D, h/2, w/2)."""
        first, second, third, fourth = maps
        if min(third.shape[-2:]) < 2:
            raise DualfuseError(
                f"an image of {third.shape[-2]} x {third.shape[-1]} patches is too small; 2 x 2 are needed"
            )
        return self.finest(first), self.fine(second), third, self.coarse(fourth)


class UPerNet(nn.Module):
    """Pools the coarsest map at four scales, adds the coarse to the finer, and classifies all levels together."""

    def __init__(self, width: int, classes: int, *, dropout: float) -> None:
        """``dropout`` leaves out whole channels before the classifier."""
        super().__init__()
        self.pooled = nn.ModuleList(_convolved(width, width, size=1) for _ in SCALES)
        self.top = _convolved((1 + len(SCALES)) * width, width, size=3)
        self.lateral = nn.ModuleList(_convolved(width, width, size=1) for _ in range(3))
        self.smooth = nn.ModuleList(_convolved(width, width, size=3) for _ in range(3))
        self.joined = _convolved(4 * width, width, size=3)
        self.classifier = _classifier(width, classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Turn four maps (B, D, ., .), the finest first, into (B, classes, h, w) at the size of the finest."""
        levels = [lateral(level) for lateral, level in zip(self.lateral, maps, strict=False)]
        levels.append(self._top(maps[-1]))
        for finer in reversed(range(3)):
            levels[finer] = levels[finer] + enlarge(levels[finer + 1], levels[finer].shape[-2:])
        smoothed = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=False)]
        same_size = [enlarge(level, levels[0].shape[-2:]) for level in (*smoothed, levels[-1])]
        return self.classifier(self.joined(torch.cat(same_size, dim=1)))

    def _top(self, coarsest: Tensor) -> Tensor:
        pooled = (layer(F.adaptive_avg_pool2d(coarsest, side)) for side, layer in zip(SCALES, self.pooled, strict=True))
        return self.top(torch.cat([coarsest, *(enlarge(part, coarsest.shape[-2:]) for part in pooled)], dim=1))


class AuxiliaryHead(nn.Module):
    """Classifies one level alone, so that the layers below learn from nearby (PSPNet)."""

    def __init__(self, width: int, classes: int, *, dropout: float) -> None:
        """``dropout`` as in :class:`UPerNet`."""
        super().__init__()
        self.convolved = _convolved(width, AUXILIARY_WIDTH, size=3)
        self.classifier = _classifier(AUXILIARY_WIDTH, classes, dropout)

    def forward(self, level: Tensor) -> Tensor:
        """Turn (B, D, h, w) into (B, classes, h, w)."""
        return self.classifier(self.convolved(level))


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (B, C, h, w) at another size, bilinear between the centres of pixels."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _doubled(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, 2, stride=2)


def _convolved(inputs: int, outputs: int, *, size: int) -> nn.Sequential:
    """Return convolution, BatchNorm, ReLU; the size of the map is kept."""
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, BatchNorm(outputs), nn.ReLU())


def _classifier(width: int, classes: int, dropout: float) -> nn.Sequential:
    last = nn.Conv2d(width, classes, 1)
    nn.init.normal_(last.weight, std=CLASSIFIER_STD)
    nn.init.zeros_(last.bias) if last.bias is not None else None
    return nn.Sequential(nn.Dropout2d(dropout), last)
