"""What a picture file is before it is decoded, and how it is brought into a shape that shards can hold."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from dualfuse.data.images import FORMATS, MAX_PIXELS, decode

JPEG_QUALITY = 90

_SIGNATURES = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"))


class TooLarge(ValueError):
    """A picture of more pixels than anyone should decode."""


@dataclass(frozen=True)
class Header:
    """What the first bytes of a picture say."""

    width: int
    height: int
    frames: int
    """More than 1: the picture is animated."""


@dataclass(frozen=True)
class Fitted:
    """A picture that was decoded once and found good, as JPEG, PNG or WebP."""

    data: bytes
    width: int
    height: int
    change: str = ""
    """What was done to it; empty: ``data`` is the original, byte for byte."""


def header(data: bytes) -> Header:
    """Gives size and frames of a picture; raises ``TooLarge``, or ``ValueError`` for what is no picture."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            frames = int(getattr(picture, "n_frames", 1))  # only formats that can be animated have it
            found = Header(*picture.size, frames)
    except Image.DecompressionBombError as error:
        raise TooLarge(str(error)) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{len(data):,} bytes are no {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's parsers let out whatever a hostile file makes them raise
        raise ValueError(f"{len(data):,} bytes are no picture: {error}") from error
    if found.width * found.height > MAX_PIXELS:
        raise TooLarge(f"{found.width} x {found.height} pixels are more than {MAX_PIXELS:,}")
    return found


def fit(data: bytes, longest_side: int = 0) -> Fitted:
    """Decodes a picture to see that it is good, and gives it in a format for shards.

    With ``longest_side``, one that is larger is made smaller and becomes a JPEG; formats other than JPEG, PNG and WebP
    become PNG. Raises ``TooLarge``, or ``ValueError`` for a picture that cannot be decoded.
    """
    header(data)
    pixels = decode(data)  # (3, H, W)
    height, width = pixels.shape[1:]
    is_larger = 0 < longest_side < max(height, width)
    if picture_suffix(data) and not is_larger:
        return Fitted(data, width, height)
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    if is_larger:
        picture.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
        return Fitted(_save(picture, "JPEG"), *picture.size, "made smaller, as JPEG")
    return Fitted(_save(picture, "PNG"), width, height, "converted to PNG")


def _save(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, quality=JPEG_QUALITY)
    return file.getvalue()


def picture_suffix(image: bytes) -> str:
    """Gives jpg, png or webp by the first bytes of a picture; empty: none of these."""
    for signature, suffix in _SIGNATURES:
        if image.startswith(signature):
            return suffix
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else ""
