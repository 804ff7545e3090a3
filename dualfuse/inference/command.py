"""What ``dualfuse predict`` does: answers one question on the console, or a table of them into a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dualfuse import distributed as dist
from dualfuse.convert.load import load
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.zero_shot import NO_NAMES, ZeroShotClasses, with_zero_shot
from dualfuse.hub import LoadedModel
from dualfuse.inference.predict import at_least_one, predict
from dualfuse.inference.table import TablePrediction, followed, predict_table, writer

SHOWN = 5  # rows that could not be used; their number is always told


def predict_command(
    model: Path | str,
    *,
    image: Sequence[Path] = (),
    text: str = "",
    top: int = 5,
    table: Path | None = None,
    out: Path | None = None,
    batch: int = 32,
    names: ZeroShotClasses = NO_NAMES,
) -> None:
    """Print what a ``model`` that :func:`load` knows says of images and a text, or of every row of a ``table``.

    With ``names``, which of them an image shows.

    Answers about a table go to ``out`` (.jsonl or .csv), or to the console, one JSON object a line. The device is the
    GPU if there is one.
    """
    at_least_one(top)
    if table and (image or text):
        raise DualfuseError(f"the table {table} has its own images and texts; give it alone, or --image and --text")
    if out and not table:
        raise DualfuseError(f"{out} is for the answers about a table; give --table, or leave out --out")
    if table and not table.is_file():
        raise DualfuseError(f"there is no table {table}; give a csv, tsv, json, jsonl or parquet file")
    if table and out and out.resolve() == table.resolve():
        raise DualfuseError(f"{out} would replace the table itself; give another file")
    loaded = with_zero_shot(load(model, device=dist.device()), names)
    if table:
        _answer_table(loaded, table, out, top=top, batch=batch)
        return
    prediction = predict(loaded, image or None, text, top=top)
    print("\n".join(prediction.lines()))
    if prediction.is_cut:
        _say(f"the text is longer than the {loaded.processor.text.length} tokens of this model; its end is cut")


def _answer_table(model: LoadedModel, table: Path, out: Path | None, *, top: int, batch: int) -> None:
    answers = followed(predict_table(model, table, top=top, batch=batch), table)
    counted = _Counted()
    if out:
        with writer(out) as write:
            for answer in answers:
                write(counted.add(answer))
    else:
        for answer in answers:
            print(counted.add(answer).line())
    for line in counted.lines():
        _say(line)
    if out:
        _say(f"the answers are in {out}")


class _Counted:
    """How many rows were answered, were cut, and could not be used, with the first of these."""

    def __init__(self) -> None:
        self.answered = self.cut = self.broken = 0
        self.first: list[TablePrediction] = []

    def add(self, answer: TablePrediction) -> TablePrediction:
        if answer.prediction is None:
            self.broken += 1
            self.first += [answer] if len(self.first) < SHOWN else []
        else:
            self.answered += 1
            self.cut += answer.prediction.is_cut
        return answer

    def lines(self) -> list[str]:
        said = [f"{self.answered:,} rows answered, {self.broken:,} could not be used"]
        said += [f"  row {answer.row}: {answer.problem}" for answer in self.first]
        said += [f"  and {self.broken - len(self.first):,} more"] if self.broken > len(self.first) else []
        return said + ([f"{self.cut:,} texts are longer than the model reads; their ends were cut"] if self.cut else [])


def _say(line: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(line)
