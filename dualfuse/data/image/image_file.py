"""What an image file is before it is decoded, and how it is brought into a shape that shards can hold."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from dualfuse.data.image.transform import FORMATS, MAX_PIXELS, decode
from dualfuse.errors import DualfuseError

JPEG_QUALITY = 90

_SIGNATURES = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"))


class TooLarge(DualfuseError):
    """An image of more pixels than anyone should decode."""


@dataclass(frozen=True)
class Header:
    """What the first bytes of an image say."""

    width: int
    height: int
    frames: int
    """More than 1: the image is animated."""


@dataclass(frozen=True)
class Fitted:
    """An image that was decoded once and found good, as JPEG, PNG or WebP."""

    data: bytes
    width: int
    height: int
    change: str = ""
    """What was done to it; empty: ``data`` is the original, byte for byte."""


def header(data: bytes) -> Header:
    """Return size and frames of an image; raises ``TooLarge``, or ``DualfuseError`` for what is no image."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            frames = int(getattr(image, "n_frames", 1))  # only formats that can be animated have it
            found = Header(*image.size, frames)
    except Image.DecompressionBombError as error:
        raise TooLarge(str(error)) from error
    except UnidentifiedImageError as error:
        raise DualfuseError(f"{len(data):,} bytes are no {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's parsers let out whatever a hostile file makes them raise
        raise DualfuseError(f"{len(data):,} bytes are no image: {error}") from error
    if found.width * found.height > MAX_PIXELS:
        raise TooLarge(f"{found.width} x {found.height} pixels are more than {MAX_PIXELS:,}")
    return found


def fit(data: bytes, longest_side: int = 0) -> Fitted:
    """Decode an image to see that it is good, and gives it in a format for shards.

    With ``longest_side``, one that is larger is made smaller and becomes a JPEG; formats other than JPEG, PNG and WebP
    become PNG. Raises ``TooLarge``, or ``DualfuseError`` for an image that cannot be decoded.
    """
    header(data)
    pixels = decode(data)  # (3, H, W)
    height, width = pixels.shape[1:]
    is_larger = 0 < longest_side < max(height, width)
    if image_suffix(data) and not is_larger:
        return Fitted(data, width, height)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    if is_larger:
        image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
        return Fitted(_save(image, "JPEG"), *image.size, "made smaller, as JPEG")
    return Fitted(_save(image, "PNG"), width, height, "converted to PNG")


def _save(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, quality=JPEG_QUALITY)
    return file.getvalue()


def image_suffix(image: bytes) -> str:
    """Return jpg, png or webp by the first bytes of an image; empty: none of these."""
    for signature, suffix in _SIGNATURES:
        if image.startswith(signature):
            return suffix
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else ""
