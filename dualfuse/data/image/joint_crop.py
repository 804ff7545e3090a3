"""Joint augmentation of an image and its label map: resize, crop, flip, distort (mmsegmentation's, for ADE20K)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dualfuse.data.image.label_map import resize_labels
from dualfuse.data.image.resize import Resampling, resize
from dualfuse.errors import DualfuseError

IGNORE_LABEL = -1
"""Label of pixels without a class: they are neither trained nor evaluated."""
MAX_ASPECT = 4
"""Maximum length of the longer side after resizing, as a multiple of the requested shorter side."""
TRIES = 10
DISTORTION = 0.5
"""Probability of each change of the photometric distortion."""
BRIGHTNESS = 32.0
"""Maximum offset of all channels, of 255."""
FACTOR = (0.5, 1.5)
"""Range of the factors of contrast and saturation."""
HUE = 18 / 180
"""Maximum offset of the hue, as a fraction of the color wheel."""


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


def distort(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return ``image`` (3, H, W) uint8 with random brightness, contrast, saturation and hue (SSD, arXiv 1512.02325).

    Contrast is changed before saturation and hue, or after them. The number of draws from ``rng`` is constant.
    """
    changes_brightness, changes_contrast, changes_saturation, changes_hue = (rng.random(4) < DISTORTION).tolist()
    contrast_last = rng.random() < DISTORTION
    shift, turn = rng.uniform(-1, 1, size=2).tolist()
    contrast, saturation = rng.uniform(*FACTOR, size=2).tolist()
    if changes_brightness:
        image = _clipped(image.float() + BRIGHTNESS * shift)
    if changes_contrast and not contrast_last:
        image = _clipped(image.float() * contrast)
    if changes_saturation or changes_hue:
        image = _recolored(image, saturation if changes_saturation else 1.0, HUE * turn if changes_hue else 0.0)
    if changes_contrast and contrast_last:
        image = _clipped(image.float() * contrast)
    return image


def _clipped(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)


def _recolored(image: Tensor, saturation: float, turn: float) -> Tensor:
    """Multiply the saturation of an image, and rotate its hue by a fraction of the color wheel."""
    pil_image = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).convert("HSV")
    hue, chroma, value = pil_image.split()
    steps = np.arange(256)
    turned = hue.point(((steps + round(256 * turn)) % 256).tolist())
    stronger = chroma.point(np.clip(np.round(steps * saturation), 0, 255).astype(int).tolist())
    changed = Image.merge("HSV", (turned, stronger, value)).convert("RGB")
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)
