"""Image files: their headers, and conversion to the formats and sizes that shards hold."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from dualfuse.data.image.decode import decode, decoding, without_large_notes
from dualfuse.data.image.formats import FORMATS, UnsupportedFormat, formats_of
from dualfuse.data.image.resize import MAX_PIXELS
from dualfuse.errors import DualfuseError

JPEG_QUALITY = 90
ANIMATED = ("GIF", "WEBP", "PNG")
"""Formats of animations; further images in a JPEG (MPO) or TIFF are previews, depth maps or pages."""

_SIGNATURES = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"))


class TooLarge(DualfuseError):
    """An image with more pixels than are decoded."""


@dataclass(frozen=True)
class Header:
    """Size and number of frames of an image file."""

    width: int
    height: int
    frames: int
    """More than 1 for an animation."""


@dataclass(frozen=True)
class ConvertedImage:
    """A decodable image as JPEG, PNG or WebP."""

    data: bytes
    width: int
    height: int
    change: str = ""
    """The conversion; empty if ``data`` is the original file."""


def header(data: bytes) -> Header:
    """Return the header of an image; raises ``TooLarge``, or ``DualfuseError`` for other files."""
    try:
        with Image.open(io.BytesIO(without_large_notes(data)), formats=formats_of(data)) as image:
            frames = int(getattr(image, "n_frames", 1)) if image.format in ANIMATED else 1
            result = Header(*image.size, frames)
    except Image.DecompressionBombError as error:
        raise TooLarge(str(error)) from error
    except UnsupportedFormat:
        raise
    except UnidentifiedImageError as error:
        raise DualfuseError(
            f"{len(data):,} bytes are not an image in one of the formats {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # Pillow's parsers raise all kinds of errors for malicious files
        raise DualfuseError(f"{len(data):,} bytes are not an image: {error}") from error
    if result.width * result.height > MAX_PIXELS:
        raise TooLarge(f"{result.width} x {result.height} pixels, more than the {MAX_PIXELS:,} allowed")
    return result


@decoding()
def convert_image(data: bytes, longest_side: int = 0) -> ConvertedImage:
    """Decode an image to check it, and return it in a format for shards.

    An image with a side above ``longest_side`` (0: no limit) is resized and becomes a JPEG; formats other than JPEG,
    PNG and WebP become PNG. Raises ``TooLarge``, or ``DualfuseError`` for an image that cannot be decoded.
    """
    header(data)
    pixels = decode(data)  # (3, H, W)
    height, width = pixels.shape[1:]
    is_larger = 0 < longest_side < max(height, width)
    if image_suffix(data) and not is_larger:
        return ConvertedImage(data, width, height)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    if is_larger:
        image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
        return ConvertedImage(_save(image, "JPEG"), *image.size, "resized, as JPEG")
    return ConvertedImage(_save(image, "PNG"), width, height, "converted to PNG")


def _save(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, quality=JPEG_QUALITY)
    return file.getvalue()


def image_suffix(image: bytes) -> str:
    """Return jpg, png or webp by the first bytes of a file; empty for other formats."""
    for signature, suffix in _SIGNATURES:
        if image.startswith(signature):
            return suffix
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else ""
