"""Images in requests: base64, data URLs, uploads and ids, bounded before they are decoded."""

from __future__ import annotations

import base64
import binascii

from dualfuse.search.server.compute.engine import check_upload
from dualfuse.search.server.http.problems import Problem
from dualfuse.search.server.options import Limits
from dualfuse.search.server.snapshot import Snapshot


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


def one_image(snapshot: Snapshot, identifier: str, image: str, limits: Limits) -> bytes:
    """Return the image of an id or of base64; ``Problem`` unless exactly one of both is there."""
    if bool(identifier) == bool(image):
        raise Problem(422, "give the image either as id or as base64 in image", param="image")
    return snapshot.read(identifier) if identifier else decode_image(image, limits)


def check_text(text: str, limits: Limits, param: str = "text") -> str:
    """Return a text; ``Problem`` 413 if it is too long, 422 if it is not valid Unicode."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise Problem(422, "the text is not valid Unicode: it holds half of a surrogate pair", param=param) from error
    if size > limits.text_bytes:
        raise Problem(413, f"the text has {size:,} bytes; send at most {limits.text_bytes:,}", param=param)
    return text
