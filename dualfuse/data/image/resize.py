"""Resizing: the two resamplers, and how an image of any shape is brought to a square.

Images are uint8 tensors (3, H, W). torch's antialiased bicubic on 8-bit channels-last memory is several times as
quick as Pillow's, and within one grey level of it for images that shrink, two for those that grow; Pillow 13 and
later resize height before width where that is cheaper (tall images), and may then differ by four. Pillow's is what
the published models were trained and evaluated with, before 13.
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


def resize(image: Tensor, size: tuple[int, int], resampling: Resampling = "torch") -> Tensor:
    """Return ``image`` (3, H, W) uint8 at ``size`` (height, width): bicubic, antialiased, aspect not kept."""
    if tuple(image.shape[1:]) == tuple(size):
        return image
    if resampling == "pillow":
        pil_image = Image.fromarray(image.permute(1, 2, 0).numpy())
        pixels = np.array(pil_image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
        return torch.from_numpy(pixels).permute(2, 0, 1)
    batch = image[None].contiguous(memory_format=torch.channels_last)  # the quick path; no copy after decode
    return F.interpolate(batch, size=size, mode="bicubic", antialias=True)[0]


def crop(image: Tensor, side: int, resampling: Resampling) -> Tensor:
    """Return the middle (3, side, side) of ``image`` with its shorter side resized to ``side``.

    Rounds as torchvision does for Pillow images: the longer side down, the corner of the crop to the nearest, halves
    to even. Raises DualfuseError for an image so narrow that the resized one had over ``MAX_PIXELS`` pixels.
    """
    height, width = image.shape[1:]
    shorter = min(height, width)
    rows, columns = int(side * height / shorter), int(side * width / shorter)
    if rows * columns > MAX_PIXELS:
        raise DualfuseError(
            f"{width} x {height} pixels become {columns} x {rows} with a shorter side of {side}, more than the "
            f"{MAX_PIXELS:,} pixels allowed; cut the image, or use the fit 'squash'"
        )
    return window(
        resize(image, (rows, columns), resampling), round((rows - side) / 2), round((columns - side) / 2), side
    )


def hugging_face(image: Tensor, side: int, divisor: int, resampling: Resampling) -> Tensor:
    """Return ``image`` resized as BridgeTower's Hugging Face processor does before its crop: (3, rows, columns).

    Raises DualfuseError for an image so narrow that one side would round down to nothing.
    """
    height, width = image.shape[1:]
    rows, columns = hugging_face_size(height, width, side, divisor)
    if not (rows and columns):
        raise DualfuseError(
            f"{width} x {height} pixels become {columns} x {rows} with a shorter side of {side} in multiples of "
            f"{divisor}; the fit 'huggingface' has no room for an image this narrow, 'crop' and 'squash' do"
        )
    return resize(image, (rows, columns), resampling)


def hugging_face_size(height: int, width: int, side: int, divisor: int) -> tuple[int, int]:
    """Return (height, width): the shorter is ``side`` unless the longer exceeds 1333/800 of that; then rounded.

    Rounding is to the nearest pixel, then down to multiples of ``divisor`` (transformers, BridgeTowerImageProcessor).
    """
    longest = int(1333 / 800 * side)
    scale = side / min(height, width)
    # as the source does: the shorter side stays an int until the cap, and the order of products decides the last bit
    sides = (side, scale * width) if height < width else (scale * height, side)
    if max(sides) > longest:
        scale = longest / max(sides)
        sides = (scale * sides[0], scale * sides[1])
    rows, columns = (int(length + 0.5) // divisor * divisor for length in sides)
    return rows, columns


def centre(image: Tensor, side: int) -> Tensor:
    """Return the middle (3, side, side) of ``image``, with black around it where it is smaller.

    Rounds as transformers' center_crop: a spare row or column is cut at the end, a missing one added at the start.
    """
    height, width = image.shape[1:]
    return window(image, (height - side) // 2, (width - side) // 2, side)


def window(image: Tensor, top: int, left: int, side: int) -> Tensor:
    """Return the square (3, side, side) whose corner is at (top, left), black where ``image`` does not reach."""
    height, width = image.shape[1:]
    return F.pad(image, (-left, left + side - width, -top, top + side - height))  # a negative margin cuts
