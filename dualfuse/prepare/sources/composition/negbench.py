"""NegBench (Alhamoud et al. 2025): csv files with four captions of an image, or with images and queries that negate."""

from __future__ import annotations

import ast
from pathlib import Path

from dualfuse.data.loader import Samples
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.composition import Benchmark
from dualfuse.prepare.sources.composition.builder import BenchmarkBuilder, BenchmarkImage, BenchmarkImages
from dualfuse.prepare.sources.image_finder import ImageFinder
from dualfuse.prepare.sources.rows import Row, TableRow, read_rows

MAX_LIST = 100_000
"""Characters of a cell with a list of captions."""


def load(source: Path, find: ImageFinder) -> Benchmark:
    """Return the multiple-choice questions by file and template, and the sets for retrieval by file."""
    paths = [source] if source.is_file() else sorted(source.glob("*.csv")) or sorted(source.glob("images/*.csv"))
    builder, galleries = BenchmarkBuilder("NegBench", find), dict[str, Samples]()
    for path in paths:
        rows = list(read_rows(path))
        columns = set(rows[0].cells) if rows else set()
        if {"caption_0", "correct_answer"} <= columns:
            for row in rows:
                _question(builder, path, row)
        elif {"captions", "filepath"} <= columns:
            galleries[path.stem] = _gallery(path, rows, find)
        else:
            raise DualfuseError(
                f"{path} has the columns {', '.join(sorted(columns)) or 'of no row'}; NegBench has image_path, "
                "caption_0, ..., correct_answer, or filepath and captions"
            )
    if not paths:
        raise DualfuseError(f"{source} has no csv files; see https://github.com/m1k2zoo/negbench for those of NegBench")
    benchmark = builder.build()
    return Benchmark(benchmark.name, benchmark.cases, benchmark.samples, galleries)


def _question(builder: BenchmarkBuilder, path: Path, row: Row) -> None:
    """Add a question with its right caption first."""
    cells, place = _cells(path, row), f"row {row.number:,} of {path}"
    captions = [str(cells[name]) for number in range(len(cells)) if (name := f"caption_{number}") in cells]
    answer, image = str(cells["correct_answer"]).strip(), str(cells.get("image_path") or "")
    if not (answer.isdigit() and int(answer) < len(captions) > 1 and image and all(captions)):
        raise DualfuseError(f"{place} needs an image_path, captions, and the number of one as correct_answer")
    right = captions.pop(int(answer))
    template = str(cells.get("correct_answer_template") or "")
    category = f"{path.stem}/{template}" if template else path.stem
    builder.captions(category, builder.image(image), (right, *captions), key=f"{path.stem}/{row.number}")


def _gallery(path: Path, rows: list[Row], find: ImageFinder) -> BenchmarkImages:
    """Return the images of a file with their queries; rows about one image are merged."""
    texts: dict[str, list[str]] = {}
    for row in rows:
        cells, place = _cells(path, row), f"row {row.number:,} of {path}"
        name = str(cells["filepath"])
        texts.setdefault(name, []).extend(_captions(str(cells["captions"]), place))
    return BenchmarkImages([BenchmarkImage(name, find(name), None, tuple(own)) for name, own in texts.items()])


def _cells(path: Path, row: Row) -> TableRow:
    if row.problem:
        raise DualfuseError(f"row {row.number:,} of {path}: {row.problem}")
    return row.cells


def _captions(cell: str, place: str) -> list[str]:
    """Return the captions of a cell, which holds a list as Python prints it."""
    try:
        captions = ast.literal_eval(cell) if len(cell) <= MAX_LIST else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        captions = None
    match captions:
        case [str(_), *others] if all(isinstance(other, str) for other in others):
            return list(captions)
    raise DualfuseError(f"{place}: captions is not a list of texts such as ['a dog', 'no cat']")
