"""Turns what users have into tar shards: recognises it, checks every image, says what was left out and why.

It can be stopped at any time: the same call resumes where it stopped, and ends with the same bytes.
"""

from __future__ import annotations

import warnings
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

from dualfuse.data.parallel_map import parallel_map
from dualfuse.data.split import parse_shares
from dualfuse.errors import DualfuseError
from dualfuse.metrics.vqa import read_vocabulary
from dualfuse.prepare.checks import ItemChecker
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.output_folder import PreparedFolder
from dualfuse.prepare.registry import recognise
from dualfuse.prepare.sources.columns import Columns
from dualfuse.prepare.sources.labels import class_folders, label_maps
from dualfuse.prepare.sources.pairs import coco_captions, folder, karpathy, tables, webdataset
from dualfuse.prepare.sources.questions import easy_vqa, nlvr2, snli_ve, visual_genome, vqav2
from dualfuse.prepare.sources.source import Source, of_others, readable
from dualfuse.prepare.summary import Summary

_AS_IT_IS = PrepareOptions()
FOLDER = "folder"  # of --label: the name of an image's folder is its label


def prepare(source: Path, out: Path, options: PrepareOptions = _AS_IT_IS) -> Summary:
    """Write the images and captions of ``source`` into indexed shards ``OUT/train-00000.tar`` and so on.

    Beside them: ``prepared.json``, the summary, and ``skipped.jsonl``, a line for each item that was left out. A run
    that was stopped resumes where it stopped; one that was complete is only checked. Raises ``DualfuseError`` for a source
    that is not recognised, for options that do not fit it, and if ``out`` holds something else.
    """
    kind, path = recognise(source)
    if kind == "table" and path != source and options.label_column == FOLDER:
        kind, path = "folder", source  # the table that lies in it is of no interest
    _refuse_idle(kind, options)
    mute = options.images_only or _in_classes(kind, options)  # an image with a class needs no caption
    check = ItemChecker(parse_shares(options.split), options.longest_side, mute)
    limit = (options.shard_samples, options.shard_megabytes << 20)
    with of_others(path, kind):
        opened = _open(kind, path, options)
    items = readable(opened.items, path, kind)
    with (
        closing(PreparedFolder(out, _request(kind, path, options), limit=limit)) as prepared,
        _progress() as progress,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # too many pixels are a reason of our own
        task = progress.add_task(f"{path.name} ({kind})", total=opened.total, skipped=0)
        for item, outcome in parallel_map(check, prepared.skip(items), options.num_workers):
            prepared.take(item, outcome)
            skipped = sum(prepared.tally.skipped.values())
            progress.update(task, completed=prepared.tally.consumed, skipped=skipped)
        prepared.put(opened.files, opened.remarks)
        return prepared.finish()


def _open(kind: str, path: Path, options: PrepareOptions) -> Source:
    known = read_vocabulary(options.answers) if options.answers else ()
    match kind:
        case "vqav2":
            return vqav2.load(path, options.images, known)
        case "visual-genome":
            return visual_genome.load(path, options.images, known)
        case "nlvr2":
            return nlvr2.load(path, options.images)
        case "snli-ve":
            return snli_ve.load(path, options.images)
        case "easy-vqa":
            return easy_vqa.load(path)
        case "folder" if options.label_column:
            return class_folders.load(path, options.class_names)
        case "label-maps":
            return label_maps.load(path)
        case "folder":
            names = folder.image_names(path)
            return Source(folder.read(path, names), len(names))
        case "karpathy":
            entries = tuple(karpathy.read(path, options.images))
            return Source(iter(entries), len(entries))
        case "captions":
            entries = tuple(coco_captions.read(path, options.images))
            return Source(iter(entries), len(entries))
        case "tar":
            return Source(webdataset.read(path))
        case _:
            named = (options.image_column, options.text_columns, options.split_column, options.label_column)
            return Source(tables.read(path, options.images, Columns(*named)))


def _in_classes(kind: str, options: PrepareOptions) -> bool:
    return kind == "folder" and options.label_column == FOLDER


def _refuse_idle(kind: str, options: PrepareOptions) -> None:
    """Raise ``DualfuseError`` for an option that says something about another kind of source."""
    by_folder = _in_classes(kind, options)
    if kind == "folder" and options.label_column and not by_folder:
        raise DualfuseError(
            f"--label {options.label_column} names a column of a table, but this source is a folder of images; if it "
            "has a sub-folder for each class, give --label folder"
        )
    if options.class_names and not by_folder:
        raise DualfuseError(
            "--names says what folders of classes are called; it needs --label folder and such a folder"
        )
    label = "" if by_folder else options.label_column
    columns = (options.image_column, options.text_columns, options.split_column, label)
    if any(columns) and kind != "table":
        names = "--image, --text, --label and --split-column"
        raise DualfuseError(f"{names} are for tables, but this source is of the kind {kind!r}")
    if options.answers and kind not in ("vqav2", "visual-genome"):
        raise DualfuseError(f"--vocabulary is for VQAv2 and Visual Genome, but this source is of the kind {kind!r}")
    if options.images and kind in ("folder", "tar", "easy-vqa", "label-maps"):
        raise DualfuseError(f"--images is for tables and json files, but this source, of the kind {kind!r}, has images")


def _request(kind: str, path: Path, options: PrepareOptions) -> dict[str, object]:
    """Return all that decides about the output, as JSON values; not where the source lies, so it may be moved."""
    paths = {"images": options.images, "answers": options.answers, "class_names": options.class_names}
    values = asdict(options) | {name: file.name if file else "" for name, file in paths.items()} | {"num_workers": 0}
    values["text_columns"] = list(options.text_columns)
    return {"source": path.name, "kind": kind, **values}


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left out {task.fields[skipped]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
