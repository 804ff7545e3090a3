"""Images and texts in the cells of tables, as people and programs store them."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote, unquote_to_bytes

from dualfuse.data.text.captions import parse_list, texts_of
from dualfuse.errors import DualfuseError
from dualfuse.printable import LONGEST, brief

MAX_NAME = 4096  # characters of a path, the limit of file systems
URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
BASE64 = re.compile(r"[A-Za-z0-9+/_\r\n-]+={0,2}\s*")
ENCODED_IMAGE = re.compile(r"[/_]9j[/_]|iVBORw0KGgo|UklGR|R0lGOD|Qk|SUkqA|TU0AK|AAAA.{4}Z0eX")
"""The first bytes of JPEG, PNG, WebP, GIF, BMP, TIFF, and AVIF or HEIC in base64."""


def cell_texts(cell: object) -> tuple[str, ...]:
    """Return the texts in a cell: a text or number, a list of these, or such a list as JSON or pandas write it.

    Raises DualfuseError for a cell of another type.
    """
    return texts_of(parse_list(cell))


def cell_image(cell: object) -> str | bytes:
    """Return the name of the image in a cell, or its bytes; empty for an empty cell.

    The bytes may be stored as they are, in base64, as a data: URI, or as Hugging Face's {"bytes", "path"}. Raises
    DualfuseError for an address in the network, and for a cell of another type.
    """
    match cell:
        case None:
            return ""
        case bytes():
            return cell
        case {"bytes": bytes(data)} if data:
            return data
        case {"bytes": str(text)} if text:
            return _base64(text)
        case {"path": str(path)}:
            return cell_image(path)
        case str():
            return _text_image(cell.strip())
        case int() | float() if not isinstance(cell, bool):
            return "".join(texts_of(cell))
    raise DualfuseError(f"its image is a {type(cell).__name__}; a path is needed")


def is_url(cell: object) -> bool:
    """Return whether a cell is the address of something in the network."""
    return isinstance(cell, str) and bool(URL.match(cell.strip())) and not cell.strip().lower().startswith("file://")


def _text_image(text: str) -> str | bytes:
    if text[:5].lower() == "data:":
        head, _, content = text.partition(",")
        return _base64(content) if head.lower().endswith(";base64") else unquote_to_bytes(content)
    if is_url(text):
        raise DualfuseError("its image is a URL, and dualfuse downloads no images")
    if text[:7].lower() == "file://":
        return unquote(text[7:].removeprefix("localhost"))
    if len(text) > 2 * LONGEST and BASE64.fullmatch(text) and (ENCODED_IMAGE.match(text) or len(text) > MAX_NAME):
        return _base64(text)
    if len(text) > MAX_NAME:
        raise DualfuseError(f"its image is neither a path nor base64: {brief(text)}")
    return text


def _base64(text: str) -> bytes:
    """Decode base64 of either alphabet, with or without padding and line breaks."""
    plain = "".join(unquote(text).split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        raise DualfuseError(f"its image is not valid base64 ({error}): {brief(text)}") from error
