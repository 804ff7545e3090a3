"""Labelled sentences and sentence pairs: the published tables of GLUE, and tables of the same columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dualfuse.checksums import sha256
from dualfuse.data.map_dataset import MapDataset, find_files, labels
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.decode import parse_json, stream_lines
from dualfuse.errors import DualfuseError
from dualfuse.io import listing

ENDINGS = (".tsv", ".jsonl", ".txt")
TEXTS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("#1 String", "#2 String"),
    ("text", "text_pair"),
    ("sentence",),
    ("text",),
)
"""Columns of the texts, the first that a table has: STS-B, RTE, MNLI; QQP; QNLI; MNLI; MRPC; CoLA and SST-2."""
LABELS = ("label", "gold_label", "is_duplicate", "Quality", "score")
"""Columns of the label; unlabelled test sets have none."""
IDS = ("index", "id", "pairID")
COLA = ("source", "label", "star", "sentence")
"""Columns of CoLA's train.tsv and dev.tsv, which do not begin with a line of names."""


@dataclass(frozen=True)
class LabeledText:
    """One row: a text or a pair of texts, its label ("": none) and its identifier, or why it cannot be used."""

    texts: tuple[str, ...]
    label: str | int | float = ""
    id: str | int = ""
    problem: str = ""


class LabeledTexts(MapDataset):
    """The rows of one or more tables, in file order: samples with one or two texts and no image."""

    def __init__(self, paths: Sequence[Path], rows: Sequence[Sequence[LabeledText]]) -> None:
        """``rows`` are those of each file; :meth:`open` reads them."""
        super().__init__(list(map(len, rows)))
        self._paths, self._rows, self._labels = tuple(paths), tuple(map(tuple, rows)), labels(paths, ENDINGS)

    @classmethod
    def open(cls, source: str | Path) -> LabeledTexts:
        """Open a table, all tables of a folder, or all that a glob pattern matches; see :func:`read_table`."""
        paths = find_files(source, ENDINGS, "table of labelled texts (.tsv of GLUE, or .jsonl)")
        opened = cls(paths, [list(read_table(path)) for path in paths])
        if not len(opened):
            raise DualfuseError(f"{source}: no rows in {len(paths)} file(s)")
        return opened

    def key(self, index: int) -> str:
        """Return the unique key of row ``index``, "FILE/NUMBER"."""
        file, number = self.locate(index)
        return f"{self._labels[file]}/{number}"

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file."""
        return dict(zip(self._labels, map(sha256, self._paths), strict=True))

    def read(self, file: int, number: int, key: str) -> Sample:
        """Return row ``number`` of a file; raises ``BrokenSample`` if it is unusable."""
        row = self._rows[file][number]
        if row.problem:
            raise BrokenSample(key, row.problem)
        label = {} if row.label == "" else {"label": row.label}
        return Sample(key, b"", row.texts, {"id": row.id, **label})


def read_table(path: Path) -> Iterator[LabeledText]:
    """Yield the rows of a table with GLUE's columns, one a line: separated by tabs, or JSON objects (.jsonl).

    Quotation marks are ordinary characters, as in GLUE. The texts are in the first of ``TEXTS`` that the table has, the
    label is in one of ``LABELS``. Raises DualfuseError for a table without such columns.
    """
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(filter(str.strip, stream_lines(path))):
            yield _json_row(line, number)
        return
    lines = (line.rstrip("\r\n") for line in stream_lines(path))
    first = next(lines, "").split("\t")
    columns = tuple(name.strip() for name in first)
    number = 0
    if _texts(columns) is None:
        if len(first) != len(COLA) or first[1] not in ("0", "1"):
            raise DualfuseError(f"{path} has the columns {listing(columns)}; {_expected()}")
        columns = COLA
        yield _row(dict(zip(columns, first, strict=True)), 0)
        number = 1
    for line in filter(None, lines):
        cells = line.split("\t")
        if len(cells) == len(columns):
            yield _row(dict(zip(columns, cells, strict=True)), number)
        else:
            yield LabeledText((), problem=f"it has {len(cells)} cells, but the table {len(columns)} columns")
        number += 1


def _json_row(line: str, number: int) -> LabeledText:
    try:
        cells = parse_json(line, f"line {number + 1:,}")
    except DualfuseError as error:
        return LabeledText((), problem=str(error))
    if not isinstance(cells, dict):
        return LabeledText((), problem=f"line {number + 1:,} holds a {type(cells).__name__}; an object is needed")
    return _row(cells, number)


def _row(cells: Mapping[str, object], number: int) -> LabeledText:
    names = _texts(tuple(cells))
    if names is None:
        return LabeledText((), problem=f"it has the fields {listing(cells)}; {_expected()}")
    texts = [cells[name] for name in names]
    found = next((cells[name] for name in LABELS if name in cells), "")
    name = next((cells[name] for name in IDS if name in cells), number)
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return LabeledText((), problem=f"its {' or '.join(names)} is empty, or not a text")
    if not isinstance(found, str | int | float) or not isinstance(name, str | int):
        return LabeledText((), problem="its label or its identifier is neither a text nor a number")
    return LabeledText(tuple(map(str, texts)), parse_label(found), name)


def parse_label(cell: str | float) -> str | int | float:
    """Return a whole number as an integer, so that it can be the index of a label; other values are unchanged."""
    return int(cell) if isinstance(cell, str) and cell.isdecimal() and len(cell) < 10 else cell


def _texts(columns: Sequence[str]) -> tuple[str, ...] | None:
    return next((names for names in TEXTS if set(names) <= set(columns)), None)


def _expected() -> str:
    return f"one of {', '.join(' and '.join(names) for names in TEXTS)} is needed"
