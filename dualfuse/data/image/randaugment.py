"""RandAugment: two operations on color or geometry, drawn with replacement, each applied with probability 0.5.

- "vlmo", of VLMo's official code: ten operations with a fixed magnitude. The official code uses OpenCV; with Pillow,
  interpolated pixels differ by rounding and at the border.
- "timm", timm's "rand-m9-mstd0.5-inc1", used to fine-tune BEiT: fifteen operations that grow stronger with a random
  magnitude. Gray is timm's fill for a mean of 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

Policy = Literal["vlmo", "timm"]
Operation = Callable[[Image.Image, float], Image.Image]
"""A function of the image and an amount from -1 to 1, whose sign matters to operations that have two directions."""

NUM_OPERATIONS = 2
PROBABILITY = 0.5
MAGNITUDE, MAGNITUDE_STD, MAX_MAGNITUDE = 9.0, 0.5, 10.0  # of timm
FACTOR = 1.36  # brightness and sharpness of VLMo at magnitude 7 of 10: 0.1 + 1.8 * 7 / 10
FILL = (128, 128, 128)
SOLARIZE_ADD_BELOW = 128


def rand_augment(image: Tensor, policy: Policy, rng: np.random.Generator) -> Tensor:
    """Apply two operations to ``image`` (3, H, W) uint8; the number of draws from ``rng`` is constant."""
    operations = tuple(POLICIES[policy].values())
    chosen = rng.integers(len(operations), size=NUM_OPERATIONS)
    applied = rng.random(NUM_OPERATIONS) < PROBABILITY
    amounts = rng.choice((-1.0, 1.0), size=NUM_OPERATIONS)
    if policy == "timm":
        amounts *= rng.normal(MAGNITUDE, MAGNITUDE_STD, size=NUM_OPERATIONS).clip(0, MAX_MAGNITUDE) / MAX_MAGNITUDE
    if not applied.any():
        return image
    # plane by plane, which is six times as fast as interleaved
    pil_image = Image.merge("RGB", [Image.fromarray(plane) for plane in image.numpy()])
    for number, amount in zip(chosen[applied], amounts[applied].tolist(), strict=True):
        pil_image = operations[number](pil_image, amount)
    return torch.from_numpy(np.array(pil_image)).permute(2, 0, 1)


def posterize(image: Image.Image, amount: float) -> Image.Image:
    """Keep the highest bits of each value: 4 at amount 0, none at 1."""
    kept = 4 - int(abs(amount) * 4)
    return image.point([value & (256 - 2 ** (8 - kept)) for value in range(256)] * 3)


def solarize(image: Image.Image, amount: float) -> Image.Image:
    """Invert values of at least 256 (1 - amount)."""
    return ImageOps.solarize(image, 256 - int(abs(amount) * 256))


def solarize_add(image: Image.Image, amount: float) -> Image.Image:
    """Add up to 110 to values below 128."""
    more = int(abs(amount) * 110)
    return image.point([value + more if value < SOLARIZE_ADD_BELOW else value for value in range(256)] * 3)


def factor(amount: float) -> float:
    """Return timm's enhancement factor: 0.1 to 1.9, and 1 at amount 0."""
    return 1 + amount * 0.9


def affine(image: Image.Image, inverse: tuple[float, ...], resampling: Image.Resampling) -> Image.Image:
    """Fill each point (x, y) from (a x + b y + c, d x + e y + f) of the image, with gray outside of it."""
    if all(float(number).is_integer() for number in inverse):  # no interpolation is needed
        resampling = Image.Resampling.NEAREST
    return image.transform(image.size, Image.Transform.AFFINE, inverse, resampling, fillcolor=FILL)


def geometry(shear: float, translate: float, degrees: float, resampling: Image.Resampling) -> dict[str, Operation]:
    """Return operations with their largest amounts: shares of the distance from an edge and of a side, and degrees.

    A positive rotation is counter-clockwise.
    """

    def transform(image: Image.Image, *inverse: float) -> Image.Image:
        return affine(image, inverse, resampling)

    return {
        "shear_x": lambda image, amount: transform(image, 1, amount * shear, 0, 0, 1, 0),
        "shear_y": lambda image, amount: transform(image, 1, 0, 0, amount * shear, 1, 0),
        "translate_x": lambda image, amount: transform(image, 1, 0, amount * translate * image.width, 0, 1, 0),
        "translate_y": lambda image, amount: transform(image, 1, 0, 0, 0, 1, amount * translate * image.height),
        "rotate": lambda image, amount: image.rotate(amount * degrees, resampling, fillcolor=FILL),
    }


POLICIES: dict[Policy, dict[str, Operation]] = {
    "vlmo": {
        "identity": lambda image, _: image,
        "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
        "equalize": lambda image, _: ImageOps.equalize(image),
        "brighten": lambda image, _: ImageEnhance.Brightness(image).enhance(FACTOR),
        "sharpen": lambda image, _: ImageEnhance.Sharpness(image).enhance(FACTOR),
        **geometry(0.21, 7 / 224, 21.0, Image.Resampling.BILINEAR),  # 7 pixels of 224 in the official code
    },
    "timm": {
        "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
        "equalize": lambda image, _: ImageOps.equalize(image),
        "invert": lambda image, _: ImageOps.invert(image),
        "posterize": posterize,
        "solarize": solarize,
        "solarize_add": solarize_add,
        "color": lambda image, amount: ImageEnhance.Color(image).enhance(factor(amount)),
        "contrast": lambda image, amount: ImageEnhance.Contrast(image).enhance(factor(amount)),
        "brightness": lambda image, amount: ImageEnhance.Brightness(image).enhance(factor(amount)),
        "sharpness": lambda image, amount: ImageEnhance.Sharpness(image).enhance(factor(amount)),
        **geometry(0.3, 0.45, 30.0, Image.Resampling.BICUBIC),
    },
}
