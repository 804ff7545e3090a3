"""UPerNet (arXiv 1807.10221): semantic segmentation from feature maps at four strides.

As in BEiT on ADE20K (microsoft/unilm, beit/semantic_segmentation; mmsegmentation's UPerHead and FCNHead): the maps of
four layers are resampled to strides of 1/4, 1/2, 1 and 2 patches; the decoder has the width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.errors import DualfuseError

SCALES = (1, 2, 3, 6)
"""Side lengths that the coarsest map is pooled to."""
AUXILIARY_WIDTH = 256
CLASSIFIER_STD = 0.01
MOMENTUM = 0.1
"""Of the running statistics of BatchNorm."""


class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with mean and variance over all processes, with gradient.

    Unlike torch's SyncBatchNorm it also runs on CPUs and on a single process. All processes must have the same number
    of pixels.
    """

    def __init__(self, channels: int) -> None:
        """``channels`` C are normalized one by one."""
        super().__init__(channels, momentum=MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return (B, C, H, W)."""
        if not self.training or dist.world_size() == 1:
            return super().forward(x)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(exact, dim=(0, 2, 3), correction=0)
        means, variances = dist.all_gather(torch.stack([mean, variance])[None]).unbind(1)  # (W, C) each
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        self._update(mean.detach(), variance.detach(), x.numel() // x.shape[1] * dist.world_size())
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (exact * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running statistics of evaluation with those of ``count`` values per channel."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.running_mean.lerp_(mean.to(self.running_mean), MOMENTUM)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), MOMENTUM)
        self.num_batches_tracked += 1


class FourStrides(nn.Module):
    """Resamples four maps of one size to a pyramid: by 4, 2, 1 and 1/2."""

    def __init__(self, width: int) -> None:
        """``width`` D is that of input and output."""
        super().__init__()
        self.finest = nn.Sequential(_upsample(width), BatchNorm(width), nn.GELU(), _upsample(width))
        self.fine = _upsample(width)
        self.coarse = nn.MaxPool2d(2)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Turn four (B, D, h, w) into (B, D, 4h, 4w), (B, D, 2h, 2w), (B, D, h, w) and (B, D, h/2, w/2)."""
        first, second, third, fourth = maps
        if min(third.shape[-2:]) < 2:
            raise DualfuseError(
                f"an image of {third.shape[-2]} x {third.shape[-1]} patches is too small; at least 2 x 2 are needed"
            )
        return self.finest(first), self.fine(second), third, self.coarse(fourth)


class UPerNet(nn.Module):
    """Pyramid pooling of the coarsest map, a top-down feature pyramid, and a classifier over all levels."""

    def __init__(self, width: int, classes: int, *, dropout: float) -> None:
        """``dropout`` is the probability of dropping a channel before the classifier."""
        super().__init__()
        self.pooled = nn.ModuleList(_conv_norm(width, width, size=1) for _ in SCALES)
        self.top = _conv_norm((1 + len(SCALES)) * width, width, size=3)
        self.lateral = nn.ModuleList(_conv_norm(width, width, size=1) for _ in range(3))
        self.smooth = nn.ModuleList(_conv_norm(width, width, size=3) for _ in range(3))
        self.joined = _conv_norm(4 * width, width, size=3)
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
    """Classifies a single level: auxiliary supervision of lower layers (PSPNet)."""

    def __init__(self, width: int, classes: int, *, dropout: float) -> None:
        """``dropout`` is that of :class:`UPerNet`."""
        super().__init__()
        self.convolved = _conv_norm(width, AUXILIARY_WIDTH, size=3)
        self.classifier = _classifier(AUXILIARY_WIDTH, classes, dropout)

    def forward(self, level: Tensor) -> Tensor:
        """Turn (B, D, h, w) into (B, classes, h, w)."""
        return self.classifier(self.convolved(level))


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (B, C, h, w) resized bilinearly, with pixel centers aligned."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _upsample(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, 2, stride=2)


def _conv_norm(inputs: int, outputs: int, *, size: int) -> nn.Sequential:
    """Return a convolution that keeps the map size, BatchNorm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, BatchNorm(outputs), nn.ReLU())


def _classifier(width: int, classes: int, dropout: float) -> nn.Sequential:
    last = nn.Conv2d(width, classes, 1)
    nn.init.normal_(last.weight, std=CLASSIFIER_STD)
    nn.init.zeros_(last.bias) if last.bias is not None else None
    return nn.Sequential(nn.Dropout2d(dropout), last)
