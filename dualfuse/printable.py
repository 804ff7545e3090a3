"""Names, captions and settings from outside, in forms that a terminal, a spreadsheet and a web page only display."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable

from dualfuse.io import to_json

LONGEST = 100
"""Characters of a foreign text that a message repeats."""
_JOINERS = "\u200c\u200d"  # inside words of Persian and of Indic scripts, and inside emoji
_SEPARATORS = re.compile(r"[,;|\t\r\n\"']")
_FORMULA = re.compile(r"[\s\x00]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")


def printable(text: str, keep: str = "") -> str:
    """Return ``text`` with escapes such as ``\\x1b`` for control characters, invisible ones and invalid Unicode.

    Characters in ``keep`` are not escaped.
    """
    if text.isprintable():
        return text
    return "".join(each if each in keep or _is_visible(each) else ascii(each)[1:-1] for each in text)


def brief(text: str, longest: int = LONGEST) -> str:
    """Return ``text`` as :func:`printable` does, but at most ``longest`` characters of it and how many there are."""
    return printable(text) if len(text) <= longest else f"{printable(text[:longest])}… ({len(text):,} characters)"


def json_line(value: object) -> str:
    """Return ``value`` as JSON in one line that a terminal can show; types that JSON lacks become texts."""
    line = to_json(value, default=str)
    return line if line.isprintable() else "".join(c if _is_visible(c) else json.dumps(c)[1:-1] for c in line)


def csv_line(cells: Iterable[object]) -> str:
    """Return a line of a CSV file without formulas, whichever separator the program that opens it expects.

    A text that a spreadsheet would calculate gets an apostrophe before it, as OWASP recommends; numbers stay.
    """
    return ",".join(map(_csv_cell, cells)) + "\n"


def markdown(text: str) -> str:
    """Return ``text`` for a line of Markdown, where none of it is markup or HTML."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(printable(text), quote=False))


def code(text: str) -> str:
    """Return ``text`` as a code span of Markdown."""
    return f"`{printable(text).replace('`', chr(39))}`"


def _is_visible(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or (character.isspace() and character in "\u00a0\u3000")


def _csv_cell(cell: object) -> str:
    text = "" if cell is None else str(cell)
    if isinstance(cell, str) and _FORMULA.match(text) and not _is_number(text):
        text = f"'{text}"
    return '"' + text.replace('"', '""') + '"' if _SEPARATORS.search(text) else text


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[+-]?\d+(\.\d+)?", text, re.ASCII))


def percent(probability: float) -> str:
    """Return a probability such as "93 %"; neither 0 nor 100 unless it is exactly that."""
    if 0 < probability < 0.01 or 0.99 < probability < 1:
        return "<1 %" if probability < 0.5 else ">99 %"
    return f"{100 * probability:.0f} %"
