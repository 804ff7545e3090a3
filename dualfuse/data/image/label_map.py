"""A label map: a PNG that has, for every pixel of an image, the number of a class."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dualfuse.data.image.resize import MAX_PIXELS
from dualfuse.errors import DualfuseError

MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
MOST = 65_535
"""The greatest number that a PNG holds."""


def decode_labels(data: bytes) -> Tensor:
    """Return the numbers in ``data`` as int32 (H, W); of an image with a palette they are its indices.

    Raises DualfuseError for anything else than a whole PNG of at most ``MAX_PIXELS`` pixels with one number for each.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DualfuseError(f"{image.width} x {image.height} pixels, more than the {MAX_PIXELS:,} allowed")
            if image.mode not in MODES:
                raise DualfuseError(f"it has colours (mode {image.mode}), where one number for each pixel is needed")
            numbers = np.array(image).astype(np.int32)
    except UnidentifiedImageError:
        raise DualfuseError(f"label map: {len(data):,} bytes are no PNG") from None
    except Exception as error:  # Pillow's parsers let out whatever a hostile file makes them raise
        raise DualfuseError(f"label map of {len(data):,} bytes cannot be used: {error}") from error
    return torch.from_numpy(numbers)


def encode_labels(labels: Tensor) -> bytes:
    """Return numbers (H, W) as a PNG of 8 bits, or of 16 where they need them; DualfuseError beyond 65,535."""
    numbers = labels.numpy()
    if numbers.min() < 0 or numbers.max() > MOST:
        raise DualfuseError(f"numbers from {numbers.min()} to {numbers.max()}; a label map holds 0 to {MOST:,}")
    file = io.BytesIO()
    Image.fromarray(numbers.astype(np.uint8 if numbers.max() < 256 else np.uint16)).save(file, "PNG")
    return file.getvalue()


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``labels`` (H, W) at ``size``: each pixel has the number that lies under its centre."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * old / new).long() for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns[None, :]]
