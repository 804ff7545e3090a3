"""Decoding of image files to RGB pixels, with a bound on the memory of all threads of a process together."""

from __future__ import annotations

import io
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from dualfuse.data.image.formats import FORMATS, UnsupportedFormat, formats_of
from dualfuse.data.image.resize import MAX_PIXELS
from dualfuse.errors import DualfuseError

MAX_DECODED = 2 * MAX_PIXELS
"""Pixels that the threads of a process decode at the same time; each takes 4 to 13 bytes, by format."""
STRIP = 1 << 20
"""Pixels that are converted to RGB at a time, so that intermediate modes take little memory."""
PNG = b"\x89PNG\r\n\x1a\n"
MAX_NOTE = ImageFile.SAFEBLOCK
"""Bytes of an uncompressed note in a PNG; Pillow refuses images with larger ones."""
MAX_NOTES = 64 * MAX_NOTE
"""Bytes of all notes in a PNG, by the same rule."""


def decode(data: bytes) -> Tensor:
    """Decode an image to uint8 RGB (3, H, W), rotated by its EXIF orientation, transparency on white.

    Of an animation the first frame is returned. Raises DualfuseError for anything but a complete JPEG, PNG, WebP, GIF,
    BMP or TIFF file (or AVIF or HEIC, if Pillow can decode it) of at most ``MAX_PIXELS`` pixels; UnsupportedFormat for
    an image in another known format.
    """
    try:
        with decoding(), Image.open(io.BytesIO(without_large_notes(data)), formats=formats_of(data)) as image:
            reserve(image.width, image.height)
            image.load()
            with suppress(Exception):  # broken EXIF data does not matter
                ImageOps.exif_transpose(image, in_place=True)
            pixels = torch.from_numpy(_rgb_pixels(image))
    except UnsupportedFormat:
        raise
    except UnidentifiedImageError:
        raise DualfuseError(
            f"{len(data):,} bytes are not an image in one of the formats {', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # Pillow's parsers raise all kinds of errors for malicious files
        raise DualfuseError(f"image of {len(data):,} bytes cannot be decoded: {error}") from error
    return pixels.permute(2, 0, 1)


def _rgb_pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels (H, W, 3) of an image in any mode."""
    rows = max(1, STRIP // image.width)
    if image.height <= rows:
        return np.array(to_rgb(image))
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(to_rgb(strip))
    return pixels


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to mode RGB: transparency on white, 16-bit gray scaled to 8 bits."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DualfuseError(
            f"mode {image.mode} (32 bits per channel) has no defined range; save the image with 8 or 16 bits"
        )
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # a conversion would copy
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def without_large_notes(data: bytes) -> bytes:
    """Return a PNG without the texts and color profiles that Pillow refuses; any other file is returned as it is.

    Image generators store whole workflows as text. Small notes are kept: they may hold the orientation.
    """
    if not data.startswith(PNG) or not any(kind in data for kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP")):
        return data
    kept, start, total = [data[:8]], 8, 0
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        size = _note_size(data[start + 4 : start + 8], data[start + 8 : end - 4])
        if size <= MAX_NOTE and total + size <= MAX_NOTES:
            kept.append(data[start:end])
            total += size
        start = end
    return b"".join(kept)


def _note_size(kind: bytes, content: bytes) -> int:
    """Return the uncompressed size of a text or profile in a PNG, or a number above the limit; 0 for others."""
    _, _, value = content.partition(b"\0")  # a keyword comes first
    if kind == b"tEXt" or (kind == b"iTXt" and value[:1] == b"\0"):
        return len(value)
    if kind == b"iTXt":
        packed = value[2:].split(b"\0", 2)[-1]  # after a flag, a method, a language and a translated keyword
    elif kind in (b"zTXt", b"iCCP"):
        packed = value[1:]  # after a method
    else:
        return 0
    try:
        return len(zlib.decompressobj().decompress(packed, MAX_NOTE + 1))
    except zlib.error:
        return 0  # Pillow ignores it


class _Budget:
    """Pixels that are being decoded, over all threads of this process."""

    def __init__(self) -> None:
        self._turn = threading.Lock()  # waiting threads are served in turn, also those with large images
        self._released = threading.Condition()
        self._pixels = 0
        self.thread = threading.local()  # depth of nested blocks, and pixels reserved in them

    def reserve(self, pixels: int) -> None:
        """Wait until the pixels fit; a thread that has a reservation never waits, as all might wait for each other."""
        if self.thread.pixels:
            with self._released:
                self._pixels += pixels
        else:
            with self._turn, self._released:
                self._released.wait_for(lambda: not self._pixels or self._pixels + pixels <= MAX_DECODED)
                self._pixels += pixels
        self.thread.pixels += pixels

    def release(self, pixels: int) -> None:
        """Return pixels to the budget."""
        with self._released:
            self._pixels -= pixels
            self._released.notify_all()


_budget = _Budget()


@contextmanager
def decoding() -> Iterator[None]:
    """Count the images that this thread decodes in the block, until the block ends, as memory in use.

    Also a decorator. Put it around code that holds decoded images; blocks may be nested.
    """
    budget = _budget
    depth = getattr(budget.thread, "depth", 0)
    if not depth:
        budget.thread.pixels = 0
    budget.thread.depth = depth + 1
    try:
        yield
    finally:
        budget.thread.depth = depth
        if not depth and budget.thread.pixels:
            budget.release(budget.thread.pixels)


def reserve(width: int, height: int) -> None:
    """Wait, in a block of :func:`decoding`, until an image fits into memory; DualfuseError above ``MAX_PIXELS``."""
    if width * height > MAX_PIXELS:
        raise DualfuseError(f"{width} x {height} pixels, more than the {MAX_PIXELS:,} allowed")
    _budget.reserve(width * height)


def _forget_threads() -> None:
    """Start with an empty budget in a forked process, which has no other threads."""
    global _budget
    _budget = _Budget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
