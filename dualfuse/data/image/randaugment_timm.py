"""RandAugment as BEiT is fine-tuned with it, timm's rand-m9-mstd0.5-inc1: two changes whose strength varies a little.

All of the fifteen changes grow with the magnitude. Where a change leaves nothing to see, the image is grey, which is
timm's fill for a mean of 0.5.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from dualfuse.data.image.randaugment import to_pil

NUM_OPERATIONS = 2
PROBABILITY = 0.5
MAGNITUDE, SPREAD, GREATEST = 9.0, 0.5, 10.0
FILL = (128, 128, 128)
MIDDLE = 128  # below it, levels are solarised by adding

Change = Callable[[Image.Image, float, float], Image.Image]
"""Changes an image by a level from 0 to 1, to the side that the sign says, where it has two."""


def rand_augment(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return ``image`` (3, H, W) uint8 after two changes drawn with replacement, each skipped half of the time.

    Always draws the same number of values from ``rng``, whatever they are.
    """
    chosen = rng.integers(len(CHANGES), size=NUM_OPERATIONS)
    applied = rng.random(NUM_OPERATIONS) < PROBABILITY
    signs = rng.choice((-1.0, 1.0), size=NUM_OPERATIONS)
    levels = rng.normal(MAGNITUDE, SPREAD, size=NUM_OPERATIONS).clip(0, GREATEST) / GREATEST
    if not applied.any():
        return image
    pil_image = to_pil(image)
    for number, level, sign in zip(chosen[applied], levels[applied].tolist(), signs[applied].tolist(), strict=True):
        pil_image = CHANGES[number](pil_image, level, sign)
    return torch.from_numpy(np.array(pil_image)).permute(2, 0, 1)


def auto_contrast(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return each channel stretched so that it spans 0 to 255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return each channel with its histogram made as even as a map of grey levels can."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return the negative."""
    return ImageOps.invert(image)


def posterize(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return the highest 4 bits of each value at level 0, down to none at 1."""
    kept = 4 - int(level * 4)
    return image.point([value & (256 - 2 ** (8 - kept)) for value in range(256)] * 3)


def solarize(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return the negative of values from 256 (1 - level) on."""
    return ImageOps.solarize(image, 256 - int(level * 256))


def solarize_add(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return values below 128 brighter by 110 levels at most."""
    more = int(level * 110)
    return image.point([value + more if value < MIDDLE else value for value in range(256)] * 3)


def colour(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return the image away from its greys, or towards them."""
    return ImageEnhance.Color(image).enhance(factor(level, sign))


def contrast(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return the image away from its mean grey, or towards it."""
    return ImageEnhance.Contrast(image).enhance(factor(level, sign))


def brightness(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return the image brighter or darker."""
    return ImageEnhance.Brightness(image).enhance(factor(level, sign))


def sharpness(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return the image away from a smoothed one, or towards it."""
    return ImageEnhance.Sharpness(image).enhance(factor(level, sign))


def shear_x(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return rows moved sideways by up to 0.3 of their distance from the top."""
    return affine(image, (1, sign * level * 0.3, 0, 0, 1, 0))


def shear_y(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return columns moved up or down by up to 0.3 of their distance from the left."""
    return affine(image, (1, 0, 0, sign * level * 0.3, 1, 0))


def translate_x(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return the image moved sideways by up to 45 % of its width."""
    return affine(image, (1, 0, sign * level * 0.45 * image.width, 0, 1, 0))


def translate_y(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return the image moved up or down by up to 45 % of its height."""
    return affine(image, (1, 0, 0, 0, 1, sign * level * 0.45 * image.height))


def rotate(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Return the image turned by up to 30 degrees around its middle; positive is counter-clockwise."""
    return image.rotate(sign * level * 30, Image.Resampling.BICUBIC, fillcolor=FILL)


def factor(level: float, sign: float) -> float:
    """Return what an image is enhanced by: 0.1 to 1.9, and 1 at level 0."""
    return 1 + sign * level * 0.9


def affine(image: Image.Image, inverse: tuple[float, ...]) -> Image.Image:
    """Return the image whose point (x, y) comes from (a x + b y + c, d x + e y + f), grey if that is outside."""
    return image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC, fillcolor=FILL)


CHANGES: tuple[Change, ...] = (
    *(auto_contrast, equalize, invert, posterize, solarize, solarize_add),
    *(colour, contrast, brightness, sharpness),
    *(shear_x, shear_y, translate_x, translate_y, rotate),
)
