"""Conversion of a data set to tar shards: recognize the format, check every image, report skipped items.

An interrupted conversion is resumed by the same call, with bytewise identical results.
"""

from __future__ import annotations

import warnings
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from PIL import Image
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
from dualfuse.prepare.registry import recognize
from dualfuse.prepare.sources.columns import Columns
from dualfuse.prepare.sources.labels import class_folders, label_maps
from dualfuse.prepare.sources.pairs import coco_captions, folder, karpathy, tables, webdataset
from dualfuse.prepare.sources.questions import easy_vqa, nlvr2, snli_ve, visual_genome, vqav2
from dualfuse.prepare.sources.source import Source, foreign_errors, readable
from dualfuse.prepare.summary import Summary
from dualfuse.progress import PlainConsole

_DEFAULTS = PrepareOptions()
FOLDER = "folder"  # value of --label: the folder of an image is its label


def prepare(source: Path, out: Path, options: PrepareOptions = _DEFAULTS) -> Summary:
    """Write the images and texts of ``source`` into indexed shards ``OUT/train-00000.tar``, ...

    Also written are ``prepared.json``, the summary, and ``skipped.jsonl``, a line for each skipped item. An interrupted
    conversion is resumed; a complete one is only checked. Raises ``DualfuseError`` for a source of unknown format, for
    options that do not fit it, and if ``out`` holds something else.
    """
    kind, path = recognize(source)
    if kind == "table" and path != source and options.label_column == FOLDER:
        kind, path = "folder", source  # a table in a folder of classes is ignored
    _check_options(kind, options)
    images_only = options.images_only or _in_classes(kind, options)  # an image with a class needs no caption
    check = ItemChecker(parse_shares(options.split), options.longest_side, images_only)
    limit = (options.shard_samples, options.shard_megabytes << 20)
    with foreign_errors(path, kind):
        opened = _open(kind, path, options)
    items = readable(opened.items, path, kind)
    with (
        closing(PreparedFolder(out, _request(kind, path, options), limit=limit)) as prepared,
        _progress() as progress,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # too large images are skipped
        task = progress.add_task(f"{path.name} ({kind})", total=opened.total, skipped=0)
        for item, outcome in parallel_map(check, prepared.skip_done(items), options.num_workers):
            prepared.add(item, outcome)
            skipped = sum(prepared.tally.skipped.values())
            progress.update(task, completed=prepared.tally.consumed, skipped=skipped)
        prepared.write_files(opened.files, opened.remarks)
        return prepared.finish()


def _open(kind: str, path: Path, options: PrepareOptions) -> Source:
    answers = read_vocabulary(options.answers) if options.answers else ()
    match kind:
        case "vqav2":
            return vqav2.load(path, options.images, answers)
        case "visual-genome":
            return visual_genome.load(path, options.images, answers)
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
            items = tuple(karpathy.read(path, options.images))
            return Source(iter(items), len(items))
        case "captions":
            items = tuple(coco_captions.read(path, options.images))
            return Source(iter(items), len(items))
        case "tar":
            return Source(webdataset.read(path))
        case _:
            columns = (options.image_column, options.text_columns, options.split_column, options.label_column)
            return Source(tables.read(path, options.images, Columns(*columns)))


def _in_classes(kind: str, options: PrepareOptions) -> bool:
    return kind == "folder" and options.label_column == FOLDER


def _check_options(kind: str, options: PrepareOptions) -> None:
    """Raise ``DualfuseError`` for options of other kinds of sources."""
    by_folder = _in_classes(kind, options)
    if kind == "folder" and options.label_column and not by_folder:
        raise DualfuseError(
            f"--label {options.label_column} names a column of a table, but this source is a folder of images; if it "
            "has a sub-folder for each class, give --label folder"
        )
    if options.class_names and not by_folder:
        raise DualfuseError(
            "--class-names names the folders of classes; it needs --label folder and a folder of images"
        )
    label = "" if by_folder else options.label_column
    columns = (options.image_column, options.text_columns, options.split_column, label)
    if any(columns) and kind != "table":
        names = "--image, --text, --label and --split-column"
        raise DualfuseError(f"{names} are for tables, but this source has the format {kind!r}")
    if options.answers and kind not in ("vqav2", "visual-genome"):
        raise DualfuseError(f"--answers is for VQAv2 and Visual Genome, but this source has the format {kind!r}")
    if options.images and kind in ("folder", "tar", "easy-vqa", "label-maps"):
        raise DualfuseError(
            f"--images is for tables and JSON files, but this source has the format {kind!r}, which includes images"
        )


def _request(kind: str, path: Path, options: PrepareOptions) -> dict[str, object]:
    """Return what determines the output, as JSON values; without folders, so that the source may be moved."""
    paths = {"images": options.images, "answers": options.answers, "class_names": options.class_names}
    values = asdict(options) | {name: file.name if file else "" for name, file in paths.items()} | {"num_workers": 0}
    values["text_columns"] = list(options.text_columns)
    return {"source": path.name, "kind": kind, **values}


def _progress() -> Progress:
    console = PlainConsole(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[skipped]} skipped"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
