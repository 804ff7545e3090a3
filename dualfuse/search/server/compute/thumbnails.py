"""Images and thumbnails of the collection, by id, with an ETag of their content."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from hashlib import blake2b

from PIL import Image, ImageOps

from dualfuse.data.image.decode import decoding, formats_of, reserve, to_rgb, without_large_notes
from dualfuse.errors import DualfuseError
from dualfuse.search.server.compute.cache import LRUCache
from dualfuse.search.server.http.problems import Problem
from dualfuse.search.server.snapshot import Snapshot

WIDTHS = (64, 128, 256, 512, 1024)  # a request gets the next larger one, so that few versions are made and cached
CACHED = 128 << 20  # bytes
TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif"}


@dataclass(frozen=True)
class ImageFile:
    """Bytes of an image, their media type and ETag."""

    data: bytes
    media_type: str
    etag: str


class Thumbnails:
    """Images as browsers show them, and small versions of them, made when they are first asked for."""

    def __init__(self) -> None:
        """Nothing is made yet."""
        self.made = LRUCache[tuple[str, str, int], ImageFile](CACHED, lambda file: len(file.data))

    def original(self, snapshot: Snapshot, identifier: str) -> ImageFile:
        """Return an image as it is in the collection; a format that browsers may run or not show becomes a JPEG."""
        key = (*snapshot.key(snapshot.name(identifier)), 0)
        if (converted := self.made.get(key)) is not None:
            return converted
        data = snapshot.read(identifier)
        if kind := media_type(data):
            return _file(data, kind)
        converted = _file(_jpeg(data, 0), "image/jpeg")
        self.made.put(key, converted)
        return converted

    def get(self, snapshot: Snapshot, identifier: str, width: int) -> ImageFile:
        """Return a version with a longer side of at most the smallest of ``WIDTHS`` that is not below ``width``."""
        side = next((each for each in WIDTHS if each >= width), WIDTHS[-1])
        key = (*snapshot.key(snapshot.name(identifier)), side)
        if (made := self.made.get(key)) is None:
            made = _file(_jpeg(snapshot.read(identifier), side), "image/jpeg")
            self.made.put(key, made)
        return made


def media_type(data: bytes) -> str:
    """Return the media type of an image that every browser shows, by its first bytes; empty for any other."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in TYPES.items() if data.startswith(start)), "")


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one after the last of a Range header; None to send everything.

    Raises ``Problem`` 416 for a range outside of the file. Several ranges are answered by the whole file.
    """
    if not (match := re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip())) or match[0].endswith("=-"):
        return None
    first, last = match[1], match[2]
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise Problem(416, f"the range {header[:60]!r} lies outside of the {size} bytes of the image")
    return start, end


def _file(data: bytes, kind: str) -> ImageFile:
    return ImageFile(data, kind, f'"{blake2b(data, digest_size=12).hexdigest()}"')


def _jpeg(data: bytes, side: int) -> bytes:
    """Return an image as a JPEG with a longer side of at most ``side``; 0: its own size."""
    try:
        buffer = io.BytesIO()
        small_image(data, side).save(buffer, "JPEG", quality=85)
        return buffer.getvalue()
    except (OSError, ValueError) as error:
        raise Problem(404, "the image can no longer be decoded; refresh the index by POST /v1/refresh") from error


@decoding()
def small_image(data: bytes, side: int) -> Image.Image:
    """Return an image in RGB with a longer side of at most ``side``, upright; 0: its own size.

    Raises ``DualfuseError`` if the file cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(without_large_notes(data)), formats=formats_of(data)) as image:
            if side:
                image.draft("RGB", (side, side))
            reserve(image.width, image.height)
            small = ImageOps.exif_transpose(to_rgb(image))
        if side:
            small.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
        return small
    except Exception as error:  # Pillow's parsers raise all kinds of errors for malicious files
        raise DualfuseError(f"image of {len(data):,} bytes cannot be decoded: {error}") from error
