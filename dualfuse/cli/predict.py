"""``dualfuse predict``: one answer on stdout, or those to a whole table in a file."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import ClassNames, Model, Templates
from dualfuse.errors import DualfuseError

if TYPE_CHECKING:
    from dualfuse.hub import LoadedModel
    from dualfuse.prepare.sources.pairs.tables import Table

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
    images: Annotated[
        Path | None, arg(metavar="FOLDER", help="with --table: folder of its images; default: the folder of the table")
    ] = None,
    image_column: Annotated[
        str, arg(help="with --table: column with the image or its path; empty: recognized by its usual names")
    ] = "",
    text_columns: Annotated[
        tuple[str, ...], arg(help="with --table: columns with the text; empty: recognized by their usual names")
    ] = (),
    keep: Annotated[
        tuple[str, ...],
        arg(metavar="COLUMN ...", help="with --table: columns, such as id and sku, that are copied to the answers"),
    ] = (),
    encoding: Annotated[
        str, arg(help="with --table: encoding of a csv, tsv or json file, such as cp1252; empty: UTF-8, or by its BOM")
    ] = "",
    top: Annotated[int, arg(help="number of answers, or of words per mask; at least 1")] = 5,
    out: Annotated[Path | None, arg(metavar="FILE", help="with --table: .jsonl or .csv file for the answers")] = None,
    batch_size: Annotated[int, arg(help="with --table: rows per forward pass")] = 32,
    zero_shot: ClassNames = "",
    templates: Templates = "",
) -> int:
    """Run the model's head on an image and a text, or on each row of a table.

    Answers to a table go to --out, or to stdout as one JSON object per line. The exit status is 1 if no row of the
    table could be used.
    """
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.inference.predict import at_least_one, predict
    from dualfuse.inference.table import input_table
    from dualfuse.inference.zero_shot import with_zero_shot
    from dualfuse.prepare.sources.columns import Columns

    at_least_one(top)
    _check_table(image, text, table, out)
    if not table and (images or image_column or text_columns or keep or encoding):
        raise DualfuseError("--images, --image-column, --text-columns, --keep and --encoding are for --table")
    loaded = with_zero_shot(load(model, device=dist.device()), zero_shot, templates)
    if table:
        opened = input_table(table, images, Columns(image_column, text_columns, keep=keep), encoding)
        return _predict_table(loaded, opened, out, keep, top=top, batch_size=batch_size)
    prediction = predict(loaded, image or None, text, top=top)
    echo("\n".join(prediction.lines()))
    if prediction.is_cut:
        echo(f"the text is truncated to {loaded.processor.text.length} tokens", to_stderr=True)
    return 0


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


def _predict_table(
    model: LoadedModel, table: Table, out: Path | None, keep: tuple[str, ...], *, top: int, batch_size: int
) -> int:
    """Return the exit status: 1 if no row could be used."""
    from dualfuse.inference.table import predict_table, table_writer
    from dualfuse.printable import json_line

    counts, unusable = Counter[str](), list[str]()
    with table_writer(out, keep) if out else nullcontext(lambda answer: echo(json_line(answer.record()))) as write:
        for answer in predict_table(model, table, top=top, batch_size=batch_size):
            write(answer)
            if answer.prediction is None:
                unusable += [f"  row {answer.row}: {answer.problem}"] if len(unusable) < SHOWN else []
            counts["unusable" if answer.prediction is None else "answered"] += 1
            counts["truncated"] += answer.prediction is not None and answer.prediction.is_cut
    lines = [f"{counts['answered']:,} rows answered, {counts['unusable']:,} unusable", *unusable]
    lines += [f"  and {counts['unusable'] - SHOWN:,} more"] if counts["unusable"] > SHOWN else []
    lines += [f"{counts['truncated']:,} texts truncated to the model's text length"] if counts["truncated"] else []
    echo("\n".join(lines + ([f"wrote {out}"] if out else [])), to_stderr=True)
    return 0 if counts["answered"] else 1
