"""Captions in the values of JSON objects and of table cells, by one rule for all sources."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping

from dualfuse.data.text.decode import decode_text, parse_json, text_lines
from dualfuse.errors import DualfuseError

_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_VALUE = rf"{_STRING}|None|nan|-?\d+(?:\.\d+)?"
_LIST = re.compile(rf"\[\s*(?:{_VALUE})(?:[\s,]+(?:{_VALUE}))*[\s,]*\]", re.DOTALL)
_TUPLE = re.compile(rf"\(\s*(?:{_VALUE})(?:\s*,\s*(?:{_VALUE}))*\s*,?\s*\)", re.DOTALL)


def texts_of(value: object) -> tuple[str, ...]:
    """Return the texts in a value: a text, a number, or a list of these; null, NaN and blank texts are none.

    Raises DualfuseError for other values.
    """
    match value:
        case None:
            return ()
        case list() | tuple():
            return tuple(text for part in value for text in texts_of(part))
        case str():
            return (value.strip(),) if value.strip() else ()
        case int() | float() if not isinstance(value, bool):
            if isinstance(value, float) and not math.isfinite(value):
                return ()
            return (str(int(value) if value == int(value) else value),)
    raise DualfuseError(f"a caption is a {type(value).__name__}; a string is needed")


def captions_of(meta: Mapping[str, object]) -> tuple[str, ...]:
    """Return the captions in a JSON object: those called "captions", or else "caption", or else "text"."""
    return next(filter(None, (texts_of(meta.get(name)) for name in ("captions", "caption", "text"))), ())


def parse_texts(
    parts: Mapping[str, bytes], name: object, encoding: str = ""
) -> tuple[tuple[str, ...], dict[str, object]]:
    """Return the captions and the meta data in the text file "txt" and the JSON file "json" of an image, if any.

    The text file has a caption per line; without captions in it, those of the JSON are returned. Raises DualfuseError
    if one of the files cannot be decoded.
    """
    meta = parse_json(parts["json"], f"{name}.json", encoding) if "json" in parts else {}
    if not isinstance(meta, dict):
        raise DualfuseError(f"{name}.json holds a {type(meta).__name__}; an object is needed")
    lines = text_lines(decode_text(parts.get("txt", b""), f"{name}.txt", encoding))
    return texts_of(lines) or captions_of(meta), meta


def parse_list(cell: object) -> object:
    """Return the list that a text cell holds as JSON or pandas write it; other cells are returned unchanged."""
    text = cell.strip() if isinstance(cell, str) else ""
    if not text or text[0] + text[-1] not in ("[]", "()"):
        return cell
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if not (_LIST if text[0] == "[" else _TUPLE).fullmatch(text) or (text[0] == "(" and "," not in text):
            return cell
        value = [None if part in ("None", "nan") else ast.literal_eval(part) for part in re.findall(_VALUE, text)]
    is_texts = isinstance(value, list) and all(isinstance(part, str | int | float | None) for part in value)
    return value if is_texts and (not value or any(isinstance(part, str) for part in value)) else cell
