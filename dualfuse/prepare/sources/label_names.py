"""Labels in tables: each text of a row becomes an item."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from dualfuse.data.text.captions import parse_list
from dualfuse.prepare.sources.source import Item

LABELS_FILE = "labels.txt"
"""Names of all classes beside the shards, one per line, in the order of their indices."""
NUMBER = re.compile(r"0|[1-9]\d*")
MAX_LABELS = 30_000  # ImageNet has 21,841
DUPLICATE = "the same row came before"


class LabelledRows:
    """Converter from rows with a label to items, which detects duplicates."""

    def __init__(self) -> None:
        """Start without any rows."""
        self._first: dict[int, Mapping[str, object]] = {}

    def items(self, row: Item, cell: object) -> Iterator[Item]:
        """Yield an item for each text of ``row`` (one without text if there is none), with the label in ``cell``.

        A duplicate row with the same label is skipped; with another label it is kept and noted.
        """
        label = parse_label(cell)
        for text in row.texts or ("",):
            first = self._first.setdefault(hash((row.split, row.name, text)), label) if label else label
            problem = note = ""
            if first is not label:
                problem, note = (DUPLICATE, "") if first == label else ("", f"{DUPLICATE} with another label")
            if not label:
                problem = (
                    "no label" if cell in (None, "", []) else "its label is not a text, a number or a list of texts"
                )
            texts = (text,) if text else ()
            yield replace(row, texts=texts, label=label, problem=row.problem or problem, note=note or row.note)


def labels_file(labels: Iterable[str]) -> Mapping[str, str]:
    """Return the text of labels.txt by its name: names are sorted, and numbers count from 0 to the largest.

    Empty without labels, and for names with line breaks.
    """
    names = sorted(set(labels))
    if any("\n" in name or "\r" in name or not name.strip() for name in names):
        return {}
    if all(NUMBER.fullmatch(name) and len(name) < len(str(MAX_LABELS)) for name in names):
        names = list(map(str, range(1 + max(map(int, names), default=-1))))
    return {LABELS_FILE: "".join(f"{name}\n" for name in names)} if names else {}


def parse_label(cell: object) -> dict[str, object]:
    """Return the ``label`` in a cell, or ``answers`` for a list of texts; empty for other values.

    Whole numbers become integers, so that they can be the index of a label.
    """
    cell = parse_list(cell)
    match cell:
        case float() if cell.is_integer():
            return {"label": int(cell)}
        case int():
            return {"label": cell}
        case str() if cell.strip():
            text = cell.strip()
            return {"label": int(text) if NUMBER.fullmatch(text) else text}
        case [_, *_] as answers if all(isinstance(answer, str) and answer.strip() for answer in answers):
            return {"answers": list(answers)}
        case _:
            return {}
