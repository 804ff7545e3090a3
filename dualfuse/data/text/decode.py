"""The reader of text files and of JSON: decoded strictly, with lines that end at ``\\n`` and ``\\r\\n`` only.

Text is UTF-8 or, with a byte order mark (BOM), UTF-16; other encodings must be named. Nothing is replaced by U+FFFD.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

from dualfuse.errors import DualfuseError
from dualfuse.files import MAX_JSON, open_regular, read_bounded

MAX_LINE = 64 << 20  # characters; more is not a text file, and would exhaust the memory
BLOCK = 1 << 20  # bytes that are checked at a time
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16"}
BOMS |= {codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_BE: "utf-16"}


class UndecodableText(DualfuseError):
    """A text in an unknown encoding."""


OTHERS = "dualfuse prepare reads other encodings, such as with"


def decode_text(data: bytes, name: object, encoding: str = "") -> str:
    """Decode the content of a text file called ``name``.

    A BOM decides; without one, text has the ``encoding``, or UTF-8 by default. Raises DualfuseError with the name, the
    line and the byte for anything else, and for text with NUL characters, which is UTF-16 without BOM or not text.
    """
    codec = codec_of(data, encoding)
    try:
        text = data.decode(codec)
    except UnicodeError:
        _refuse(data.split(b"\n"), codec, name)
    return _without_nul(text, name)


def text_lines(text: str) -> list[str]:
    """Split a text at ``\\n`` and ``\\r\\n``; str.splitlines also splits at invisible characters such as U+2028."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def read_lines(path: Path, encoding: str = "") -> list[str]:
    """Return the lines of a text file that are not blank, stripped; errors as in :func:`decode_text`."""
    lines = text_lines(decode_text(read_bounded(path, MAX_JSON), path, encoding))
    return [line.strip() for line in lines if line.strip()]


def stream_lines(path: Path, encoding: str = "") -> Iterator[str]:
    """Yield the lines of a file of any size, without line ends; the whole file is checked before the first line."""
    codec = _check(path, encoding)
    with TextIOWrapper(open_regular(path), codec, newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n").removesuffix("\r")


def parse_json(data: bytes | str, name: object, encoding: str = "") -> Any:  # Any: JSON
    """Parse JSON; raises DualfuseError with the name if it is damaged or has two values of one name."""
    try:
        text = data if isinstance(data, str) else decode_text(data, name, encoding)
        return json.loads(text, object_pairs_hook=_unique)
    except DualfuseError:
        raise
    except (ValueError, RecursionError) as error:  # RecursionError: deeply nested
        raise DualfuseError(f"{name} is not JSON: {error}") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        name = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
        raise ValueError(f"an object has two values called {name!r}")
    return content


def codec_of(data: bytes, encoding: str = "") -> str:
    """Return the codec of a text that begins with ``data``: its BOM decides, then ``encoding``, then UTF-8."""
    codec = next((codec for mark, codec in BOMS.items() if data.startswith(mark)), encoding or "utf-8")
    try:
        return codecs.lookup(codec).name
    except LookupError:
        raise DualfuseError(f"the encoding {encoding!r} is unknown; usual ones are cp1252, latin-1 and gbk") from None


def _check(path: Path, encoding: str) -> str:
    """Return the codec of a file after decoding all of it."""
    with open_regular(path) as file:
        block = file.read(BLOCK)
        codec = codec_of(block, encoding)
        decoder, length = codecs.getincrementaldecoder(codec)(), 0
        try:
            while block:
                text = _without_nul(decoder.decode(block), path)
                last = text.rfind("\n") + 1
                length = len(text) - last if last else length + len(text)
                if length > MAX_LINE:
                    raise DualfuseError(f"{path} has a line of more than {MAX_LINE:,} characters")
                block = file.read(BLOCK)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            file.seek(0)
            _refuse(file, codec, path)
    return codec


def _without_nul(text: str, name: object) -> str:
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UndecodableText(
            f"{name} has NUL characters in line {line:,}: it is not a text file, or it is UTF-16 without a byte order "
            f"mark; save it as UTF-8 ({OTHERS} --encoding utf-16-le)"
        )
    return text


def _refuse(lines: Iterable[bytes], codec: str, name: object) -> NoReturn:
    where = ""
    for number, line in enumerate(lines, start=1):
        try:
            line.decode(codec)
        except UnicodeDecodeError as error:
            where = f" at byte {error.start + 1:,} (0x{line[error.start]:02x}) of line {number:,}"
            break
    raise UndecodableText(f"{name} is not {codec.upper()}{where}; save it as UTF-8 ({OTHERS} --encoding cp1252)")
