"""Photometric distortion (SSD, arXiv 1512.02325), as in mmsegmentation: four changes, each with probability 0.5."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PROBABILITY = 0.5
BRIGHTNESS = 32.0
"""Maximum offset of all channels, of 255."""
FACTOR = (0.5, 1.5)
"""Range of the factors of contrast and saturation."""
HUE = 18 / 180
"""Maximum offset of the hue, as a fraction of the color wheel."""


def distort(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return ``image`` (3, H, W) uint8 with random brightness, contrast, saturation and hue.

    Contrast is changed before saturation and hue, or after them. The number of draws from ``rng`` is constant.
    """
    changes_brightness, changes_contrast, changes_saturation, changes_hue = (rng.random(4) < PROBABILITY).tolist()
    contrast_last = rng.random() < PROBABILITY
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
