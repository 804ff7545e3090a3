"""Images and texts in requests: base64, data URLs, uploads and ids, bounded before they are decoded."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Hashable
from dataclasses import dataclass
from hashlib import blake2b

from dualfuse.data.image.image_file import header
from dualfuse.errors import DualfuseError
from dualfuse.search.server.compute.engine import Engine
from dualfuse.search.server.http.problems import Problem
from dualfuse.search.server.options import Limits
from dualfuse.search.server.snapshot import Snapshot


@dataclass(frozen=True)
class ImageInput:
    """The file of an image, and what stands for it in caches."""

    key: Hashable
    data: bytes


async def read_image(
    engine: Engine, snapshot: Snapshot, identifier: str, image: str, param: str = "image"
) -> ImageInput:
    """Return the image of an id or of base64, read in another thread; ``Problem`` unless exactly one is there."""
    if bool(identifier) == bool(image):
        raise Problem(422, "give the image either as id or as base64 in image", param=param)
    if identifier:
        name = snapshot.name(identifier)
        return ImageInput(snapshot.key(name), await engine.read(snapshot.read, identifier))
    data = await engine.read(decode_image, image, engine.options.limits, param)
    return ImageInput(blake2b(data, digest_size=16).digest(), data)


def decode_image(value: str, limits: Limits, param: str = "image") -> bytes:
    """Return the bytes of an image in base64, or in a data URL; ``Problem`` for anything else."""
    head, _, content = value.rpartition(",") if value.startswith("data:") else ("", "", value)
    if head and not head.endswith(";base64"):
        raise Problem(422, "a data URL of an image has to be in base64: data:image/png;base64,…", param=param)
    if len(content) > limits.upload_bytes * 4 // 3 + 4:
        raise Problem(413, f"the image is larger than {limits.upload_bytes:,} bytes", param=param)
    try:
        data = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(422, f"the image is not valid base64: {error}", param=param) from error
    return check_upload(data, limits, param)


def check_upload(data: bytes, limits: Limits, param: str = "image") -> bytes:
    """Return the bytes of an uploaded image; ``Problem`` 413 if it is too large, 415 if it is not an image."""
    if len(data) > limits.upload_bytes:
        raise Problem(413, f"the image has {len(data):,} bytes; send at most {limits.upload_bytes:,}", param=param)
    try:
        size = header(data)
    except DualfuseError as error:
        raise Problem(415, f"this file is not a usable image: {error}", param=param) from error
    if size.width * size.height > limits.upload_pixels:
        message = f"the image has {size.width} x {size.height} pixels; send at most {limits.upload_pixels:,}"
        raise Problem(413, message, param=param)
    return data


def check_text(text: str, limits: Limits, param: str = "text") -> str:
    """Return a text; ``Problem`` 413 if it is too long, 422 if it is not valid Unicode."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise Problem(422, "the text is not valid Unicode: it holds half of a surrogate pair", param=param) from error
    if size > limits.text_bytes:
        raise Problem(413, f"the text has {size:,} bytes; send at most {limits.text_bytes:,}", param=param)
    return text
