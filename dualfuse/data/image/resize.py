"""Resizing: two resampling backends, and three ways to make an image of any shape a square.

Images are uint8 tensors (3, H, W). torch's antialiased bicubic filter on 8-bit channels-last memory is several times as
fast as Pillow's, and within one gray level of it for downscaling, two for upscaling. Pillow 13 and later resize height
before width where that is cheaper (tall images), and may then differ by four. The published models were trained and
evaluated with Pillow before 13.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dualfuse.errors import DualfuseError

MAX_PIXELS = 64_000_000  # 192 MB as RGB; below the limit at which Pillow itself starts to warn

Resampling = Literal["torch", "pillow"]
Interpolation = Literal["bicubic", "bilinear"]


def resize(
    image: Tensor, size: tuple[int, int], resampling: Resampling = "torch", interpolation: Interpolation = "bicubic"
) -> Tensor:
    """Resize ``image`` (3, H, W) uint8 to ``size`` (height, width), antialiased, without keeping the aspect."""
    if tuple(image.shape[1:]) == tuple(size):
        return image
    if resampling == "pillow":
        pil_image = Image.fromarray(image.permute(1, 2, 0).numpy())
        pixels = np.array(pil_image.resize((size[1], size[0]), Image.Resampling[interpolation.upper()]))
        return torch.from_numpy(pixels).permute(2, 0, 1)
    batch = image[None].contiguous(memory_format=torch.channels_last)  # the fast path; no copy after decode
    return F.interpolate(batch, size=size, mode=interpolation, antialias=True)[0]


def resize_and_crop(
    image: Tensor, side: int, resampling: Resampling, interpolation: Interpolation = "bicubic"
) -> Tensor:
    """Resize the shorter side of ``image`` to ``side`` and center-crop it to (3, side, side).

    Rounds as torchvision does for Pillow images: the longer side down, the corner of the crop to the nearest, halves
    to even. Raises DualfuseError for an image so narrow that the resized one would exceed ``MAX_PIXELS`` pixels.
    """
    resized = resize_shorter(image, side, resampling, interpolation)
    rows, columns = resized.shape[1:]
    return window(resized, round((rows - side) / 2), round((columns - side) / 2), side)


def resize_shorter(image: Tensor, side: int, resampling: Resampling, interpolation: Interpolation) -> Tensor:
    """Resize the shorter side of ``image`` to ``side``; the longer one is rounded down.

    Raises DualfuseError for an image so narrow that the resized one would exceed ``MAX_PIXELS`` pixels.
    """
    height, width = image.shape[1:]
    shorter = min(height, width)
    rows, columns = int(side * height / shorter), int(side * width / shorter)
    if rows * columns > MAX_PIXELS:
        raise DualfuseError(
            f"{width} x {height} pixels become {columns} x {rows} with a shorter side of {side}, more than the "
            f"{MAX_PIXELS:,} pixels allowed; crop the image, or use resize_mode 'squash'"
        )
    return resize(image, (rows, columns), resampling, interpolation)


def resize_huggingface(image: Tensor, side: int, divisor: int, resampling: Resampling) -> Tensor:
    """Return ``image`` resized as BridgeTower's Hugging Face processor does before its crop: (3, rows, columns).

    Raises DualfuseError for an image so narrow that one side would be rounded to 0.
    """
    height, width = image.shape[1:]
    rows, columns = huggingface_size(height, width, side, divisor)
    if not (rows and columns):
        raise DualfuseError(
            f"{width} x {height} pixels become {columns} x {rows} with a shorter side of {side} in multiples of "
            f"{divisor}; an image this narrow needs resize_mode 'crop' or 'squash'"
        )
    return resize(image, (rows, columns), resampling)


def huggingface_size(height: int, width: int, side: int, divisor: int) -> tuple[int, int]:
    """Return (height, width): the shorter is ``side`` unless the longer would exceed 1333/800 of it.

    Rounding is to the nearest pixel, then down to multiples of ``divisor`` (transformers, BridgeTowerImageProcessor).
    """
    longest = int(1333 / 800 * side)
    scale = side / min(height, width)
    # as in transformers: the shorter side is an int until the cap, and the order of products decides the last bit
    sides = (side, scale * width) if height < width else (scale * height, side)
    if max(sides) > longest:
        scale = longest / max(sides)
        sides = (scale * sides[0], scale * sides[1])
    rows, columns = (int(length + 0.5) // divisor * divisor for length in sides)
    return rows, columns


def center_crop(image: Tensor, side: int) -> Tensor:
    """Center-crop ``image`` to (3, side, side), padding it with black where it is smaller.

    Rounds as transformers' center_crop: an odd row or column is removed at the end, a missing one added at the start.
    """
    height, width = image.shape[1:]
    return window(image, (height - side) // 2, (width - side) // 2, side)


def window(image: Tensor, top: int, left: int, side: int) -> Tensor:
    """Return the square (3, side, side) with its corner at (top, left), black outside of ``image``."""
    height, width = image.shape[1:]
    return F.pad(image, (-left, left + side - width, -top, top + side - height))  # negative margins crop
