"""An image and its label map, resized, cropped and flipped together (mmsegmentation's pipeline for ADE20K)."""

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

NOTHING = -1
"""The number of pixels that are of no class: they are not trained, and not judged."""
LONGEST = 4
"""A longer side is at most so many times what the shorter one should be."""
TRIES = 10


@dataclass(frozen=True)
class JointCrop:
    """How training images and their label maps are varied together."""

    scale: tuple[float, float] = (0.5, 2.0)
    """The shorter side becomes that of the crop times a number in this range; the aspect is kept."""
    most: float = 0.75
    """Largest share of one class in a crop; if ten have more, the last is taken. 1: any crop."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    distort: bool = True
    """Whether brightness, contrast, saturation and hue are varied."""

    def __post_init__(self) -> None:
        """Refuse ranges that no image can satisfy."""
        if not 0 < self.scale[0] <= self.scale[1]:
            raise DualfuseError(f"scale is {self.scale}; give two factors, 0 < least <= greatest")
        if not (0 < self.most <= 1 and 0 <= self.flip <= 1):
            raise DualfuseError(f"most is {self.most} and flip {self.flip}; give a share above 0, and a probability")

    def __call__(
        self,
        image: Tensor,
        labels: Tensor,
        size: tuple[int, int],
        resampling: Resampling,
        rng: np.random.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Return a variant of ``image`` (3, H, W) uint8 and ``labels`` (H, W), of at most ``size``.

        Where the resized image is smaller than the crop, so is what comes back: pad it after normalising.
        """
        shape = fitted_shape(labels.shape, min(size) * rng.uniform(*self.scale))
        labels = resize_labels(labels, shape)
        top, left = self._place(labels, size, rng)
        inside = (slice(top, top + size[0]), slice(left, left + size[1]))
        image, labels = resize(image, shape, resampling)[:, *inside], labels[inside]
        if rng.random() < self.flip:
            image, labels = image.flip(2), labels.flip(1)
        return (distort(image, rng) if self.distort else image), labels

    def _place(self, labels: Tensor, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Return the corner of a crop that has more than one class, none of them with more than its share."""
        top = left = 0
        for _ in range(TRIES):
            top, left = (int(rng.integers(max(0, n - side) + 1)) for n, side in zip(labels.shape, size, strict=True))
            if self.most == 1:
                break
            crop = labels[top : top + size[0], left : left + size[1]]
            counts = torch.bincount(crop[crop != NOTHING])
            if counts.count_nonzero() > 1 and counts.max() < self.most * counts.sum():
                break
        return top, left


def fitted_shape(shape: tuple[int, ...], side: float) -> tuple[int, int]:
    """Return (height, width) with the aspect of ``shape``: the shorter is ``side``, or the longer four of it."""
    scale = min(side / min(shape), LONGEST * side / max(shape))
    rows, columns = (max(1, int(length * scale + 0.5)) for length in shape)
    return rows, columns


def padded(maps: Tensor, size: tuple[int, int], value: float) -> Tensor:
    """Return ``maps`` (..., H, W) with ``value`` below and to the right, so that they have at least ``size``."""
    height, width = maps.shape[-2:]
    return F.pad(maps, (0, max(0, size[1] - width), 0, max(0, size[0] - height)), value=value)
