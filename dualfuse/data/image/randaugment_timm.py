"""timm's RandAugment "rand-m9-mstd0.5-inc1", used to fine-tune BEiT: two operations with a random magnitude.

All fifteen operations grow stronger with the magnitude. Areas outside of the image are filled with gray, which is
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
MAGNITUDE, MAGNITUDE_STD, MAX_MAGNITUDE = 9.0, 0.5, 10.0
FILL = (128, 128, 128)
SOLARIZE_ADD_BELOW = 128

Operation = Callable[[Image.Image, float, float], Image.Image]
"""A function of the image, a level from 0 to 1, and a sign (the direction of operations that have two)."""


def rand_augment(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Apply two operations, drawn with replacement, each with probability 0.5, to ``image`` (3, H, W) uint8.

    The number of draws from ``rng`` is constant.
    """
    chosen = rng.integers(len(OPERATIONS), size=NUM_OPERATIONS)
    applied = rng.random(NUM_OPERATIONS) < PROBABILITY
    signs = rng.choice((-1.0, 1.0), size=NUM_OPERATIONS)
    levels = rng.normal(MAGNITUDE, MAGNITUDE_STD, size=NUM_OPERATIONS).clip(0, MAX_MAGNITUDE) / MAX_MAGNITUDE
    if not applied.any():
        return image
    pil_image = to_pil(image)
    for number, level, sign in zip(chosen[applied], levels[applied].tolist(), signs[applied].tolist(), strict=True):
        pil_image = OPERATIONS[number](pil_image, level, sign)
    return torch.from_numpy(np.array(pil_image)).permute(2, 0, 1)


def auto_contrast(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Stretch each channel to the range 0 to 255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Equalize the histogram of each channel."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Invert the image."""
    return ImageOps.invert(image)


def posterize(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Keep the highest bits of each value: 4 at level 0, none at level 1."""
    kept = 4 - int(level * 4)
    return image.point([value & (256 - 2 ** (8 - kept)) for value in range(256)] * 3)


def solarize(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Invert values of at least 256 (1 - level)."""
    return ImageOps.solarize(image, 256 - int(level * 256))


def solarize_add(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Add up to 110 to values below 128."""
    more = int(level * 110)
    return image.point([value + more if value < SOLARIZE_ADD_BELOW else value for value in range(256)] * 3)


def color(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Change the saturation."""
    return ImageEnhance.Color(image).enhance(factor(level, sign))


def contrast(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Change the contrast."""
    return ImageEnhance.Contrast(image).enhance(factor(level, sign))


def brightness(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Change the brightness."""
    return ImageEnhance.Brightness(image).enhance(factor(level, sign))


def sharpness(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Change the sharpness."""
    return ImageEnhance.Sharpness(image).enhance(factor(level, sign))


def shear_x(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Shift each row horizontally by up to 0.3 of its distance from the top."""
    return affine(image, (1, sign * level * 0.3, 0, 0, 1, 0))


def shear_y(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Shift each column vertically by up to 0.3 of its distance from the left."""
    return affine(image, (1, 0, 0, sign * level * 0.3, 1, 0))


def translate_x(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Shift the image horizontally by up to 45 % of its width."""
    return affine(image, (1, 0, sign * level * 0.45 * image.width, 0, 1, 0))


def translate_y(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Shift the image vertically by up to 45 % of its height."""
    return affine(image, (1, 0, 0, 0, 1, sign * level * 0.45 * image.height))


def rotate(image: Image.Image, level: float, sign: float) -> Image.Image:
    """Rotate the image by up to 30 degrees around its center; positive is counter-clockwise."""
    return image.rotate(sign * level * 30, Image.Resampling.BICUBIC, fillcolor=FILL)


def factor(level: float, sign: float) -> float:
    """Return the enhancement factor: 0.1 to 1.9, and 1 at level 0."""
    return 1 + sign * level * 0.9


def affine(image: Image.Image, inverse: tuple[float, ...]) -> Image.Image:
    """Fill each point (x, y) from (a x + b y + c, d x + e y + f) of the image, with gray outside of it."""
    return image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC, fillcolor=FILL)


OPERATIONS: tuple[Operation, ...] = (
    *(auto_contrast, equalize, invert, posterize, solarize, solarize_add),
    *(color, contrast, brightness, sharpness),
    *(shear_x, shear_y, translate_x, translate_y, rotate),
)
