"""Photometric distortion (SSD, arXiv 1512.02325), as mmsegmentation has it: each of four changes half of the time."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PROBABILITY = 0.5
BRIGHTNESS = 32.0
"""Added to all channels, at most; of 255."""
FACTOR = (0.5, 1.5)
"""Contrast and saturation are multiplied by a number in this range."""
HUE = 18 / 180
"""Added to the hue, at most; in turns of the colour wheel."""


def distort(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return ``image`` (3, H, W) uint8 in other light: brightness, contrast, saturation and hue.

    Contrast comes before saturation and hue, or after them. Always draws the same number of values from ``rng``.
    """
    brighter, contrast, saturated, turned = (rng.random(4) < PROBABILITY).tolist()
    contrast_last = rng.random() < PROBABILITY
    shift, turn = rng.uniform(-1, 1, size=2).tolist()
    contrast_by, saturated_by = rng.uniform(*FACTOR, size=2).tolist()
    if brighter:
        image = _clipped(image.float() + BRIGHTNESS * shift)
    if contrast and not contrast_last:
        image = _clipped(image.float() * contrast_by)
    if saturated or turned:
        image = _coloured(image, saturated_by if saturated else 1.0, HUE * turn if turned else 0.0)
    if contrast and contrast_last:
        image = _clipped(image.float() * contrast_by)
    return image


def _clipped(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)


def _coloured(image: Tensor, saturation: float, turn: float) -> Tensor:
    """Return the image with its saturation multiplied, and its hue turned by parts of a whole turn."""
    pil_image = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).convert("HSV")
    hue, colour, value = pil_image.split()
    steps = np.arange(256)
    turned = hue.point(((steps + round(256 * turn)) % 256).tolist())
    stronger = colour.point(np.clip(np.round(steps * saturation), 0, 255).astype(int).tolist())
    changed = Image.merge("HSV", (turned, stronger, value)).convert("RGB")
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)
