"""RandAugment of VLMo's official code: two random operations on color or geometry, with a fixed magnitude.

The official code uses OpenCV; with Pillow, interpolated pixels differ by rounding and at the border.
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
TRANSLATE = 7 / 224  # of the side: 7 pixels of 224 in the official code
ROTATE = 21.0  # degrees
FILL = (128, 128, 128)


def rand_augment(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Apply two operations, drawn with replacement, each with probability 0.5, to ``image`` (3, H, W) uint8.

    The number of draws from ``rng`` is constant.
    """
    chosen = rng.integers(len(COLOR) + len(GEOMETRY), size=NUM_OPERATIONS)
    applied = rng.random(NUM_OPERATIONS) < PROBABILITY
    signs = rng.choice((-1.0, 1.0), size=NUM_OPERATIONS)
    if not applied.any():
        return image
    pil_image = to_pil(image)
    for number, sign in zip(chosen[applied].tolist(), signs[applied].tolist(), strict=True):
        is_color = number < len(COLOR)
        pil_image = COLOR[number](pil_image) if is_color else GEOMETRY[number - len(COLOR)](pil_image, sign)
    return torch.from_numpy(np.array(pil_image)).permute(2, 0, 1)


def to_pil(image: Tensor) -> Image.Image:
    """Convert ``image`` (3, H, W) uint8 to Pillow, plane by plane, which is six times as fast as interleaved."""
    return Image.merge("RGB", [Image.fromarray(plane) for plane in image.numpy()])


def identity(image: Image.Image) -> Image.Image:
    """Return the image unchanged."""
    return image


def auto_contrast(image: Image.Image) -> Image.Image:
    """Stretch each channel to the range 0 to 255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image) -> Image.Image:
    """Equalize the histogram of each channel."""
    return ImageOps.equalize(image)


def brighten(image: Image.Image) -> Image.Image:
    """Multiply the brightness by 1.36."""
    return ImageEnhance.Brightness(image).enhance(FACTOR)


def sharpen(image: Image.Image) -> Image.Image:
    """Return 1.36 times the image minus 0.36 times a smoothed one; the border is unchanged."""
    return ImageEnhance.Sharpness(image).enhance(FACTOR)


def shear_x(image: Image.Image, sign: float) -> Image.Image:
    """Shift each row horizontally by 0.21 of its distance from the top."""
    return affine(image, (1, sign * SHEAR, 0, 0, 1, 0))


def shear_y(image: Image.Image, sign: float) -> Image.Image:
    """Shift each column vertically by 0.21 of its distance from the left."""
    return affine(image, (1, 0, 0, sign * SHEAR, 1, 0))


def translate_x(image: Image.Image, sign: float) -> Image.Image:
    """Shift the image horizontally by 1/32 of its width (7 pixels of 224)."""
    return affine(image, (1, 0, sign * TRANSLATE * image.width, 0, 1, 0))


def translate_y(image: Image.Image, sign: float) -> Image.Image:
    """Shift the image vertically by 1/32 of its height (7 pixels of 224)."""
    return affine(image, (1, 0, 0, 0, 1, sign * TRANSLATE * image.height))


def rotate(image: Image.Image, sign: float) -> Image.Image:
    """Rotate the image by 21 degrees around its center; positive is counter-clockwise."""
    return image.rotate(sign * ROTATE, Image.Resampling.BILINEAR, fillcolor=FILL)


def affine(image: Image.Image, inverse: tuple[float, ...]) -> Image.Image:
    """Fill each point (x, y) from (a x + b y + c, d x + e y + f) of the image, with gray outside of it."""
    interpolates = not all(float(number).is_integer() for number in inverse)  # with integers no interpolation is needed
    resampling = Image.Resampling.BILINEAR if interpolates else Image.Resampling.NEAREST
    return image.transform(image.size, Image.Transform.AFFINE, inverse, resampling, fillcolor=FILL)


COLOR: tuple[Callable[[Image.Image], Image.Image], ...] = (identity, auto_contrast, equalize, brighten, sharpen)
GEOMETRY: tuple[Callable[[Image.Image, float], Image.Image], ...] = (shear_x, shear_y, translate_x, translate_y, rotate)
