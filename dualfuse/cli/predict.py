"""``dualfuse predict``: one answer on stdout, or those to a whole table in a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from dualfuse.cli.parser import ClassNames, Model, Templates
from dualfuse.errors import DualfuseError

if TYPE_CHECKING:
    from dualfuse.hub import LoadedModel
    from dualfuse.inference.table import TablePrediction

EXAMPLES = """
dualfuse predict runs/vqa/final --image photo.jpg --text "what colour is the car?"
dualfuse predict runs/demo/pairs/final --image photo.jpg --zero-shot "cat, dog, bird"
dualfuse predict runs/vqa/final --table questions.csv --out answers.jsonl
"""
SHOWN = 5  # unusable rows that are named; all are counted


def run(
    model: Model,
    image: Annotated[
        tuple[Path, ...], arg(metavar="FILE ...", help="image, or two for a model that compares two images")
    ] = (),
    text: Annotated[
        str, arg(help="question, caption, or text with [MASK] (<mask> for RoBERTa) where a word is missing")
    ] = "",
    table: Annotated[
        Path | None, arg(metavar="FILE", help="csv, tsv, json, jsonl or parquet table with columns image and text")
    ] = None,
    top: Annotated[int, arg(help="number of answers, or of words per mask; at least 1")] = 5,
    out: Annotated[Path | None, arg(metavar="FILE", help="with --table: .jsonl or .csv file for the answers")] = None,
    batch_size: Annotated[int, arg(help="with --table: rows per forward pass")] = 32,
    zero_shot: ClassNames = "",
    templates: Templates = "",
) -> None:
    """Run the model's head on an image and a text, or on each row of a table.

    Answers to a table go to --out, or to stdout as one JSON object per line.
    """
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.inference.predict import at_least_one, predict
    from dualfuse.inference.zero_shot import with_zero_shot

    at_least_one(top)
    _check_table(image, text, table, out)
    loaded = with_zero_shot(load(model, device=dist.device()), zero_shot, templates)
    if table:
        _predict_table(loaded, table, out, top=top, batch_size=batch_size)
        return
    prediction = predict(loaded, image or None, text, top=top)
    print("\n".join(prediction.lines()))
    if prediction.is_cut:
        print(f"the text is truncated to {loaded.processor.text.length} tokens", file=sys.stderr)


def _check_table(image: tuple[Path, ...], text: str, table: Path | None, out: Path | None) -> None:
    """Raise ``DualfuseError`` for options that contradict each other."""
    if table and (image or text):
        raise DualfuseError(f"the table {table} has its own images and texts; leave out --image and --text")
    if out and not table:
        raise DualfuseError(f"--out {out} is for the answers to a table; give --table, or leave out --out")
    if table and not table.is_file():
        raise DualfuseError(f"the table {table} does not exist; give a csv, tsv, json, jsonl or parquet file")
    if table and out and out.resolve() == table.resolve():
        raise DualfuseError(f"--out {out} would replace the table; give another file")


def _predict_table(model: LoadedModel, table: Path, out: Path | None, *, top: int, batch_size: int) -> None:
    from dualfuse.inference.table import predict_table, table_writer

    answers = predict_table(model, table, top=top, batch=batch_size)
    counts = _Counts()
    if out:
        with table_writer(out) as write:
            for answer in answers:
                write(counts.add(answer))
    else:
        for answer in answers:
            print(counts.add(answer).line())
    print("\n".join(counts.lines() + ([f"wrote {out}"] if out else [])), file=sys.stderr)


class _Counts:
    """Numbers of answered, truncated and unusable rows, and the first of the latter."""

    def __init__(self) -> None:
        self.answered = self.truncated = self.unusable = 0
        self.first: list[TablePrediction] = []

    def add(self, answer: TablePrediction) -> TablePrediction:
        if answer.prediction is None:
            self.unusable += 1
            self.first += [answer] if len(self.first) < SHOWN else []
        else:
            self.answered += 1
            self.truncated += answer.prediction.is_cut
        return answer

    def lines(self) -> list[str]:
        lines = [f"{self.answered:,} rows answered, {self.unusable:,} unusable"]
        lines += [f"  row {answer.row}: {answer.problem}" for answer in self.first]
        lines += [f"  and {self.unusable - len(self.first):,} more"] if self.unusable > len(self.first) else []
        return lines + ([f"{self.truncated:,} texts truncated to the model's text length"] if self.truncated else [])
