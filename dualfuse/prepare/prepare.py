"""Turns what users have into tar shards: recognises it, checks every picture, says what was left out and why.

It can be stopped at any time: the same call goes on where it was, and ends with the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dualfuse.data.ordered import ordered_map
from dualfuse.data.split import parse_shares
from dualfuse.prepare.check import Check
from dualfuse.prepare.folder import PreparedFolder
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.sources import captions, folder, img2dataset, karpathy, tables
from dualfuse.prepare.sources.columns import Columns
from dualfuse.prepare.sources.item import Item
from dualfuse.prepare.sources.recognise import recognise
from dualfuse.prepare.summary import Summary

_AS_IT_IS = PrepareOptions()


def prepare(source: Path, out: Path, options: PrepareOptions = _AS_IT_IS) -> Summary:
    """Writes the pictures and captions of ``source`` into indexed shards ``OUT/train-00000.tar`` and so on.

    Beside them: ``prepared.json``, the summary, and ``left-out.jsonl``, a line for each item that was left out. A run
    that was stopped goes on where it was; one that was complete is only checked. Raises ``ValueError`` for a source
    that is not recognised, for options that do not fit it, and if ``out`` holds something else.
    """
    kind, path = recognise(source)
    _refuse_idle(kind, options)
    check = Check(parse_shares(options.split), options.longest_side, options.pictures_only)
    limit = (options.shard_samples, options.shard_megabytes << 20)
    items, total = _items(kind, path, options)
    with (
        closing(PreparedFolder(out, _request(kind, path, options), limit=limit)) as prepared,
        _progress() as progress,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # too many pixels are a reason of our own
        task = progress.add_task(f"{path.name} ({kind})", total=total, left_out=0)
        for item, outcome in ordered_map(check, prepared.skip(items), options.workers):
            prepared.take(item, outcome)
            left_out = sum(prepared.tally.left_out.values())
            progress.update(task, completed=prepared.tally.consumed, left_out=left_out)
        return prepared.finish()


def _items(kind: str, path: Path, options: PrepareOptions) -> tuple[Iterator[Item], int | None]:
    """Gives the items of a source, and how many there are where that is known before they are read."""
    match kind:
        case "folder":
            names = folder.picture_names(path)
            return folder.read(path, names), len(names)
        case "karpathy":
            entries = tuple(karpathy.read(path, options.images))
            return iter(entries), len(entries)
        case "captions":
            entries = tuple(captions.read(path, options.images))
            return iter(entries), len(entries)
        case "tar":
            return img2dataset.read(path), None
        case _:
            columns = Columns(options.image_column, options.text_columns, options.split_column)
            return tables.read(path, options.images, columns), None


def _refuse_idle(kind: str, options: PrepareOptions) -> None:
    """Raises ``ValueError`` for an option that says something about another kind of source."""
    has_columns = options.image_column or options.text_columns or options.split_column
    if has_columns and kind != "table":
        raise ValueError(f"--image, --text and --split-column are for tables, but this source is of the kind {kind!r}")
    if options.images and kind in ("folder", "tar"):
        raise ValueError(f"--images is for tables and json files, but this source, of the kind {kind!r}, has pictures")


def _request(kind: str, path: Path, options: PrepareOptions) -> dict[str, object]:
    """Gives all that decides about the output, as JSON values; not where the source lies, so it may be moved."""
    values = asdict(options) | {"images": options.images.name if options.images else "", "workers": 0}
    values["text_columns"] = list(options.text_columns)
    return {"source": path.name, "kind": kind, **values}


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left out {task.fields[left_out]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
