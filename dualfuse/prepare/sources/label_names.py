"""Rows of a table with a label: each text is trained by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from dualfuse.prepare.sources.item import Item

NUMBER = re.compile(r"0|[1-9]\d*")


class Labelled:
    """Makes items of rows, and notices those that come twice."""

    def __init__(self) -> None:
        """No row was seen yet."""
        self._seen: dict[int, Mapping[str, object]] = {}

    def items(self, row: Item, cell: object) -> Iterator[Item]:
        """Return an item for each text of ``row`` (one without text if there is none), with the label in ``cell``.

        A row that comes again with the same label is a problem; with another label it is kept and noted.
        """
        truth = truth_of(cell)
        for text in row.texts or ("",):
            first = self._seen.setdefault(hash((row.split, row.name, text)), truth) if truth else truth
            problem, note = _said_before(first, truth) if first is not truth else ("", "")
            if not truth:
                problem = "no label" if cell in (None, "", []) else "its label is no text, no number, no list of texts"
            texts = (text,) if text else ()
            yield replace(row, texts=texts, label=truth, problem=row.problem or problem, note=note)


def _said_before(first: Mapping[str, object], now: Mapping[str, object]) -> tuple[str, str]:
    """Return the problem and the note of a row that came before, with what is ``first``."""
    return ("the same row came before", "") if first == now else ("", "the same row came before with another label")


def truth_of(cell: object) -> dict[str, object]:
    """Return what a cell holds: a ``label``, or ``answers`` where it is a list of texts; nothing if neither.

    Labels that are written as whole numbers become such, so that they can mean the number of a label, too.
    """
    match cell:
        case float() if cell.is_integer():
            return {"label": int(cell)}
        case int():
            return {"label": cell}
        case str() if cell.strip():
            text = cell.strip()
            return {"label": int(text) if NUMBER.fullmatch(text) else text}
        case [_, *_] if all(isinstance(answer, str) and answer.strip() for answer in cell):
            return {"answers": list(cell)}
        case _:
            return {}
