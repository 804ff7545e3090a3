"""Label maps: PNG files with a class number for every pixel of an image."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dualfuse.data.image.decode import decoding, reserve, without_large_notes
from dualfuse.errors import DualfuseError

MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
MAX_LABEL = 65_535  # of a 16-bit PNG


def decode_labels(data: bytes) -> Tensor:
    """Decode a label map to int32 (H, W); the labels of a palette image are its indices.

    Raises DualfuseError for anything but a complete single-channel PNG of at most ``MAX_PIXELS`` pixels.
    """
    try:
        with decoding(), Image.open(io.BytesIO(without_large_notes(data)), formats=("PNG",)) as image:
            reserve(image.width, image.height)
            if image.mode not in MODES:
                raise DualfuseError(f"it is a color image (mode {image.mode}); a label map has one channel")
            numbers = np.array(image).astype(np.int32)
    except UnidentifiedImageError:
        raise DualfuseError(f"label map: {len(data):,} bytes are not a PNG") from None
    except Exception as error:  # Pillow's parsers raise all kinds of errors for malicious files
        raise DualfuseError(f"label map of {len(data):,} bytes cannot be used: {error}") from error
    return torch.from_numpy(numbers)


def encode_labels(labels: Tensor) -> bytes:
    """Return labels (H, W) as an 8-bit PNG, or 16-bit if needed; raises DualfuseError outside 0 to 65,535."""
    numbers = labels.numpy()
    if numbers.min() < 0 or numbers.max() > MAX_LABEL:
        raise DualfuseError(f"labels from {numbers.min()} to {numbers.max()}; a label map holds 0 to {MAX_LABEL:,}")
    file = io.BytesIO()
    Image.fromarray(numbers.astype(np.uint8 if numbers.max() < 256 else np.uint16)).save(file, "PNG")
    return file.getvalue()


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``labels`` (H, W) to ``size``; each pixel gets the label under its center."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * old / new).long() for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], columns[None, :]]
