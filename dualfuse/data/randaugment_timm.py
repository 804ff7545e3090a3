"""RandAugment as BEiT is fine-tuned with it, timm's rand-m9-mstd0.5-inc1: two changes whose strength varies a little.

All of the fifteen changes grow with the magnitude. Where a change leaves nothing to see, the picture is grey, which is
timm's fill for a mean of 0.5.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from dualfuse.data.randaugment import to_picture

NUM_OPERATIONS = 2
PROBABILITY = 0.5
MAGNITUDE, SPREAD, GREATEST = 9.0, 0.5, 10.0
FILL = (128, 128, 128)
MIDDLE = 128  # below it, levels are solarised by adding

Change = Callable[[Image.Image, float, float], Image.Image]
"""Changes a picture by a level from 0 to 1, to the side that the sign says, where it has two."""


def rand_augment(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Gives you ``image`` (3, H, W) uint8 after two changes drawn with replacement, each skipped half of the time.

    Always draws the same number of values from ``rng``, whatever they are.
    """
    chosen = rng.integers(len(CHANGES), size=NUM_OPERATIONS)
    applied = rng.random(NUM_OPERATIONS) < PROBABILITY
    signs = rng.choice((-1.0, 1.0), size=NUM_OPERATIONS)
    levels = rng.normal(MAGNITUDE, SPREAD, size=NUM_OPERATIONS).clip(0, GREATEST) / GREATEST
    if not applied.any():
        return image
    picture = to_picture(image)
    for number, level, sign in zip(chosen[applied], levels[applied].tolist(), signs[applied].tolist(), strict=True):
        picture = CHANGES[number](picture, level, sign)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def auto_contrast(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you each channel stretched so that it spans 0 to 255."""
    return ImageOps.autocontrast(picture)


def equalize(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you each channel with its histogram made as even as a map of grey levels can."""
    return ImageOps.equalize(picture)


def invert(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you the negative."""
    return ImageOps.invert(picture)


def posterize(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you the highest 4 bits of each value at level 0, down to none at 1."""
    kept = 4 - int(level * 4)
    return picture.point([value & (256 - 2 ** (8 - kept)) for value in range(256)] * 3)


def solarize(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you the negative of values from 256 (1 - level) on."""
    return ImageOps.solarize(picture, 256 - int(level * 256))


def solarize_add(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you values below 128 brighter by 110 levels at most."""
    more = int(level * 110)
    return picture.point([value + more if value < MIDDLE else value for value in range(256)] * 3)


def colour(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you the picture away from its greys, or towards them."""
    return ImageEnhance.Color(picture).enhance(factor(level, sign))


def contrast(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you the picture away from its mean grey, or towards it."""
    return ImageEnhance.Contrast(picture).enhance(factor(level, sign))


def brightness(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you the picture brighter or darker."""
    return ImageEnhance.Brightness(picture).enhance(factor(level, sign))


def sharpness(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you the picture away from a smoothed one, or towards it."""
    return ImageEnhance.Sharpness(picture).enhance(factor(level, sign))


def shear_x(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you rows moved sideways by up to 0.3 of their distance from the top."""
    return affine(picture, (1, sign * level * 0.3, 0, 0, 1, 0))


def shear_y(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you columns moved up or down by up to 0.3 of their distance from the left."""
    return affine(picture, (1, 0, 0, sign * level * 0.3, 1, 0))


def translate_x(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you the picture moved sideways by up to 45 % of its width."""
    return affine(picture, (1, 0, sign * level * 0.45 * picture.width, 0, 1, 0))


def translate_y(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you the picture moved up or down by up to 45 % of its height."""
    return affine(picture, (1, 0, 0, 0, 1, sign * level * 0.45 * picture.height))


def rotate(picture: Image.Image, level: float, sign: float) -> Image.Image:
    """Gives you the picture turned by up to 30 degrees around its middle; positive is counter-clockwise."""
    return picture.rotate(sign * level * 30, Image.Resampling.BICUBIC, fillcolor=FILL)


def factor(level: float, sign: float) -> float:
    """Gives what a picture is enhanced by: 0.1 to 1.9, and 1 at level 0."""
    return 1 + sign * level * 0.9


def affine(picture: Image.Image, inverse: tuple[float, ...]) -> Image.Image:
    """Gives you the picture whose point (x, y) comes from (a x + b y + c, d x + e y + f), grey if that is outside."""
    return picture.transform(picture.size, Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC, fillcolor=FILL)


CHANGES: tuple[Change, ...] = (
    *(auto_contrast, equalize, invert, posterize, solarize, solarize_add),
    *(colour, contrast, brightness, sharpness),
    *(shear_x, shear_y, translate_x, translate_y, rotate),
)
