"""``dualfuse predict``: one answer on stdout, or those to a whole table in a file."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Flags, Force, Model, ZeroShot, check_new
from dualfuse.errors import DualfuseError

if TYPE_CHECKING:
    from dualfuse.hub import LoadedModel

EXAMPLES = """
dualfuse predict runs/vqa/final --image photo.jpg --text "what colour is the car?"
dualfuse predict runs/demo/starter/best --image photo.jpg --zero-shot "cat, dog, bird"
dualfuse predict runs/vqa/final --table questions.csv --out answers.jsonl
"""
SHOWN = 5  # unusable rows that are named; all are counted


@dataclass(frozen=True)
class TableOptions:
    """Flags of ``dualfuse predict --table``."""

    table: Annotated[Path | None, arg(metavar="FILE")] = None
    """csv, tsv, json, jsonl or parquet table with columns image and text"""
    images: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """with --table: folder of its images; default: the folder of the table"""
    image_column: str = ""
    """with --table: column with the image or its path; empty: recognized by its usual names"""
    text_columns: tuple[str, ...] = ()
    """with --table: columns with the text; empty: recognized by their usual names"""
    keep: Annotated[tuple[str, ...], arg(metavar="COLUMN ...")] = ()
    """with --table: columns, such as id and sku, that are copied to the answers"""
    encoding: str = ""
    """with --table: encoding of a csv, tsv or json file, such as cp1252; empty: UTF-8, or by its BOM"""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """with --table: .jsonl or .csv file for the answers"""
    batch_size: int = 32
    """with --table: rows per forward pass"""


@dataclass(frozen=True)
class Options:
    """Flags of ``dualfuse predict``."""

    model: Model
    image: Annotated[tuple[Path, ...], arg(metavar="FILE ...")] = ()
    """image, or two for a model that compares two images"""
    text: str = ""
    """question, caption, or text with [MASK] (<mask> for RoBERTa) where a word is missing"""
    top: int = 5
    """number of answers, or of words per mask; at least 1"""
    rows: Flags[TableOptions] = field(default_factory=TableOptions)
    zero: Flags[ZeroShot] = field(default_factory=ZeroShot)
    force: Force = False


def run(options: Flags[Options]) -> int:
    """Run the model's head on an image and a text, or on each row of a table.

    Answers to a table go to --out, or to stdout as one JSON object per line. The exit status is 1 if no row of the
    table could be used.
    """
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.inference.predict import at_least_one, predict
    from dualfuse.inference.zero_shot import with_zero_shot

    at_least_one(options.top)
    _check(options)
    check_new(options.rows.out, force=options.force)
    loaded = with_zero_shot(load(options.model, device=dist.device()), options.zero.zero_shot, options.zero.templates)
    if table := options.rows.table:
        return _predict_table(loaded, table, options.rows, options.top)
    prediction = predict(loaded, options.image or None, options.text, top=options.top)
    echo("\n".join(prediction.lines()))
    if prediction.is_cut:
        echo(f"the text is truncated to {loaded.processor.text.length} tokens", to_stderr=True)
    return 0


def _check(options: Options) -> None:
    """Raise ``DualfuseError`` for options that contradict each other."""
    rows, table, out = options.rows, options.rows.table, options.rows.out
    if table and (options.image or options.text):
        raise DualfuseError(f"the table {table} has its own images and texts; leave out --image and --text")
    if out and not table:
        raise DualfuseError(f"--out {out} is for the answers to a table; give --table, or leave out --out")
    if table and not table.is_file():
        raise DualfuseError(f"the table {table} does not exist; give a csv, tsv, json, jsonl or parquet file")
    if table and out and out.resolve() == table.resolve():
        raise DualfuseError(f"--out {out} would replace the table; give another file")
    if not table and (rows.images or rows.image_column or rows.text_columns or rows.keep or rows.encoding):
        raise DualfuseError("--images, --image-column, --text-columns, --keep and --encoding are for --table")


def _predict_table(model: LoadedModel, path: Path, rows: TableOptions, top: int) -> int:
    """Return the exit status: 1 if no row could be used."""
    from dualfuse.inference.table import input_table, predict_table, table_writer
    from dualfuse.prepare.sources.columns import Columns
    from dualfuse.printable import json_line

    columns = Columns(rows.image_column, rows.text_columns, keep=rows.keep)
    table, out = input_table(path, rows.images, columns, rows.encoding), rows.out
    counts, unusable = Counter[str](), list[str]()
    with table_writer(out, rows.keep) if out else nullcontext(lambda answer: echo(json_line(answer.record()))) as write:
        for answer in predict_table(model, table, top=top, batch_size=rows.batch_size):
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
