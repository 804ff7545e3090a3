"""RandAugment as VLMo's training uses it: two random changes of tone or geometry, of one fixed strength.

The reference did this with OpenCV; here Pillow does it, so interpolated pixels differ by rounding and at the border.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

NUM_OPERATIONS = 2
PROBABILITY = 0.5
FACTOR = 1.36  # brightness and sharpness at magnitude 7 of 10: 0.1 + 1.8 * 7 / 10
SHEAR = 0.21
TRANSLATE = 7 / 224  # of the side: the reference's 7 pixels at its 224
ROTATE = 21.0  # degrees
FILL = (128, 128, 128)


def rand_augment(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return ``image`` (3, H, W) uint8 after two operations drawn with replacement, each skipped half of the time.

    Always draws the same number of values from ``rng``, whatever they are.
    """
    chosen = rng.integers(len(TONES) + len(MOVES), size=NUM_OPERATIONS)
    applied = rng.random(NUM_OPERATIONS) < PROBABILITY
    signs = rng.choice((-1.0, 1.0), size=NUM_OPERATIONS)
    if not applied.any():
        return image
    pil_image = to_pil(image)
    for number, sign in zip(chosen[applied].tolist(), signs[applied].tolist(), strict=True):
        tone = number < len(TONES)
        pil_image = TONES[number](pil_image) if tone else MOVES[number - len(TONES)](pil_image, sign)
    return torch.from_numpy(np.array(pil_image)).permute(2, 0, 1)


def to_pil(image: Tensor) -> Image.Image:
    """Return ``image`` (3, H, W) uint8 as Pillow has it; plane by plane, six times as quick as pixel by pixel."""
    return Image.merge("RGB", [Image.fromarray(plane) for plane in image.numpy()])


def identity(image: Image.Image) -> Image.Image:
    """Return the image as it is."""
    return image


def auto_contrast(image: Image.Image) -> Image.Image:
    """Return each channel stretched so that it spans 0 to 255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image) -> Image.Image:
    """Return each channel with its histogram made as even as a map of grey levels can."""
    return ImageOps.equalize(image)


def brighten(image: Image.Image) -> Image.Image:
    """Return the image 1.36 times as bright."""
    return ImageEnhance.Brightness(image).enhance(FACTOR)


def sharpen(image: Image.Image) -> Image.Image:
    """Return 1.36 parts of the image less 0.36 parts of a smoothed one; the border stays."""
    return ImageEnhance.Sharpness(image).enhance(FACTOR)


def shear_x(image: Image.Image, sign: float) -> Image.Image:
    """Return rows moved sideways by 0.21 of their distance from the top."""
    return affine(image, (1, sign * SHEAR, 0, 0, 1, 0))


def shear_y(image: Image.Image, sign: float) -> Image.Image:
    """Return columns moved up or down by 0.21 of their distance from the left."""
    return affine(image, (1, 0, 0, sign * SHEAR, 1, 0))


def translate_x(image: Image.Image, sign: float) -> Image.Image:
    """Return the image moved sideways by 1/32 of its width: 7 pixels of 224."""
    return affine(image, (1, 0, sign * TRANSLATE * image.width, 0, 1, 0))


def translate_y(image: Image.Image, sign: float) -> Image.Image:
    """Return the image moved up or down by 1/32 of its height: 7 pixels of 224."""
    return affine(image, (1, 0, 0, 0, 1, sign * TRANSLATE * image.height))


def rotate(image: Image.Image, sign: float) -> Image.Image:
    """Return the image turned by 21 degrees around its middle; positive is counter-clockwise."""
    return image.rotate(sign * ROTATE, Image.Resampling.BILINEAR, fillcolor=FILL)


def affine(image: Image.Image, inverse: tuple[float, ...]) -> Image.Image:
    """Return the image whose point (x, y) comes from (a x + b y + c, d x + e y + f), grey if that is outside."""
    between = not all(float(number).is_integer() for number in inverse)  # whole numbers: each pixel is one of before
    resampling = Image.Resampling.BILINEAR if between else Image.Resampling.NEAREST
    return image.transform(image.size, Image.Transform.AFFINE, inverse, resampling, fillcolor=FILL)


TONES: tuple[Callable[[Image.Image], Image.Image], ...] = (identity, auto_contrast, equalize, brighten, sharpen)
MOVES: tuple[Callable[[Image.Image, float], Image.Image], ...] = (shear_x, shear_y, translate_x, translate_y, rotate)
