"""Joint augmentation of an image and its label map: resize, crop, flip (mmsegmentation's pipeline for ADE20K)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse.data.image.label_map import resize_labels
from dualfuse.data.image.photometric_distortion import distort
from dualfuse.data.image.resize import Resampling, resize
from dualfuse.errors import DualfuseError

IGNORE_LABEL = -1
"""Label of pixels without a class: they are neither trained nor evaluated."""
MAX_ASPECT = 4
"""Maximum length of the longer side after resizing, as a multiple of the requested shorter side."""
TRIES = 10


@dataclass(frozen=True)
class JointCrop:
    """Joint augmentation of training images and their label maps."""

    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the resize factor: the shorter side becomes that of the crop times the factor; the aspect is kept."""
    most: float = 0.75
    """Maximum share of one class in a crop; after ten crops with more, the last is taken. 1: no limit."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    distort: bool = True
    """Photometric distortion: random brightness, contrast, saturation and hue."""

    def __post_init__(self) -> None:
        """Validate the ranges."""
        if not 0 < self.scale[0] <= self.scale[1]:
            raise DualfuseError(f"scale is {self.scale}; give two factors, 0 < minimum <= maximum")
        if not (0 < self.most <= 1 and 0 <= self.flip <= 1):
            raise DualfuseError(
                f"most is {self.most} and flip {self.flip}; most must be above 0 and at most 1, flip between 0 and 1"
            )

    def __call__(
        self,
        image: Tensor,
        labels: Tensor,
        size: tuple[int, int],
        resampling: Resampling,
        rng: np.random.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Return an augmented ``image`` (3, H, W) uint8 and its ``labels`` (H, W), of at most ``size``.

        The result is smaller than ``size`` where the resized image is; pad it after normalizing.
        """
        shape = resized_shape(labels.shape, min(size) * rng.uniform(*self.scale))
        labels = resize_labels(labels, shape)
        top, left = self._corner(labels, size, rng)
        inside = (slice(top, top + size[0]), slice(left, left + size[1]))
        image, labels = resize(image, shape, resampling)[:, *inside], labels[inside]
        if rng.random() < self.flip:
            image, labels = image.flip(2), labels.flip(1)
        return (distort(image, rng) if self.distort else image), labels

    def _corner(self, labels: Tensor, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Return the corner of a crop with at least two classes, none with a share of ``most`` or more."""
        top = left = 0
        for _ in range(TRIES):
            top, left = (int(rng.integers(max(0, n - side) + 1)) for n, side in zip(labels.shape, size, strict=True))
            if self.most == 1:
                break
            crop = labels[top : top + size[0], left : left + size[1]]
            counts = torch.bincount(crop[crop != IGNORE_LABEL])
            if counts.count_nonzero() > 1 and counts.max() < self.most * counts.sum():
                break
        return top, left


def resized_shape(shape: tuple[int, ...], side: float) -> tuple[int, int]:
    """Return (height, width) with the aspect of ``shape``; the shorter is ``side``, the longer at most 4 ``side``."""
    scale = min(side / min(shape), MAX_ASPECT * side / max(shape))
    rows, columns = (max(1, int(length * scale + 0.5)) for length in shape)
    return rows, columns


def pad_to_size(maps: Tensor, size: tuple[int, int], value: float) -> Tensor:
    """Pad ``maps`` (..., H, W) with ``value`` at the bottom and the right to at least ``size``."""
    height, width = maps.shape[-2:]
    return F.pad(maps, (0, max(0, size[1] - width), 0, max(0, size[0] - height)), value=value)
