"""Conversion of a data set to tar shards: recognize the format, check every image, report skipped items.

An interrupted conversion is resumed by the same call, with bytewise identical results.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

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
from dualfuse.io import remove_folder, remove_unfinished
from dualfuse.lock import lock
from dualfuse.metrics.vqa import read_vocabulary
from dualfuse.prepare.checks import MISSING, ItemChecker
from dualfuse.prepare.earlier import UPDATE, Reuser, install_update, is_current
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.output_folder import PreparedFolder
from dualfuse.prepare.registry import recognize
from dualfuse.prepare.sources.columns import Columns
from dualfuse.prepare.sources.label_names import labels_file
from dualfuse.prepare.sources.labels import cifar, class_folders, label_maps
from dualfuse.prepare.sources.pairs import (
    coco_captions,
    folder,
    karpathy,
    nocaps,
    tables,
    visual_genome_regions,
    webdataset,
)
from dualfuse.prepare.sources.questions import easy_vqa, nlvr2, snli_ve, visual_genome, vqav2
from dualfuse.prepare.sources.source import Source, foreign_errors, kept_fields, readable
from dualfuse.prepare.summary import Summary, Tally
from dualfuse.progress import PlainConsole

logger = logging.getLogger(__name__)

_DEFAULTS = PrepareOptions()
FOLDER = "folder"  # value of --label: the folder of an image is its label


def prepare(source: Path, out: Path, options: PrepareOptions = _DEFAULTS) -> Summary:
    """Write the images and texts of ``source`` into indexed shards ``OUT/train-00000.tar``, ...

    Also written are ``prepared.json``, the summary, and ``skipped.jsonl``, a line for each skipped item. An interrupted
    conversion is resumed. A complete one is updated if the source has changed: unchanged items are copied, and the
    result is that of a new conversion. Raises ``DualfuseError`` for a source of unknown format, for options that do not
    fit it, and if ``out`` holds something else or another process writes to it.
    """
    with lock(out.absolute().with_name(f".{out.absolute().name}.lock"), out):
        remove_unfinished(out)
        return _prepare(source, out, options)


def _prepare(source: Path, out: Path, options: PrepareOptions) -> Summary:
    install_update(out)
    if source.is_dir() and out.is_dir() and source.samefile(out):
        raise DualfuseError(f"SOURCE and OUT are the same folder, {out}; give another one for the shards")
    kind, path = recognize(source, out, _columns(options))
    if kind == "table" and path != source and options.label_column == FOLDER:
        kind, path = "folder", source  # a table in a folder of classes is ignored
    _check_options(kind, options)
    conversion = _Conversion(kind, path, out, options)
    check, opened = conversion.check, conversion.open()  # before a folder is created
    with conversion.folder(out) as prepared:
        if not prepared.is_finished:
            return conversion.run(prepared, opened, Reuser(check))
        if is_current(out, prepared.tally, readable(opened.items, path, kind)):
            prepared.write_files(_files(opened, prepared.tally, options, kind), opened.remarks)
            return prepared.finish()
    logger.info("%s has changed since %s was written; unchanged items are copied", path, out)
    remove_folder(out / UPDATE)  # an interrupted update
    with conversion.folder(out / UPDATE) as prepared:
        summary = conversion.run(prepared, conversion.open(), Reuser(check, out))
    install_update(out)
    return replace(summary, folder=out)


@dataclass(frozen=True)
class _Conversion:
    """A source and how it is converted to shards in ``out``."""

    kind: str
    path: Path
    out: Path
    options: PrepareOptions

    @property
    def check(self) -> ItemChecker:
        """The function that decodes and checks an item."""
        options = self.options
        images_only = (
            options.images_only or self.kind in UNCAPTIONED or _in_classes(self.kind, options)
        )  # an image with a class needs no caption
        return ItemChecker(parse_shares(options.split), options.longest_side, images_only)

    def open(self) -> Source:
        """Return the source."""
        with foreign_errors(self.path, self.kind):
            opened = _FORMATS[self.kind].load(self.path, self.options, self.out)
        return replace(opened, items=kept_fields(opened.items, self.options.keep, self.path))

    @contextmanager
    def folder(self, folder: Path) -> Iterator[PreparedFolder]:
        """Open the folder that is written: ``out``, or that of an update."""
        limit = (self.options.shard_samples, self.options.shard_megabytes << 20)
        with closing(PreparedFolder(folder, _request(self.kind, self.path, self.options), limit=limit)) as opened:
            yield opened

    def run(self, prepared: PreparedFolder, opened: Source, check: Reuser) -> Summary:
        """Write all items of the opened source that ``prepared`` does not have yet."""
        prepared.advice = _advice(self.kind, self.options, opened.remarks)
        items = readable(opened.items, self.path, self.kind)
        with _progress() as progress, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # too large images are skipped
            task = progress.add_task(f"{self.path.name} ({self.kind})", total=opened.total, skipped=0)
            for item, outcome in parallel_map(check, prepared.skip_done(items), self.options.num_workers):
                prepared.add(item, outcome)
                skipped = sum(prepared.tally.skipped.values())
                progress.update(task, completed=prepared.tally.consumed, skipped=skipped)
        prepared.write_files(_files(opened, prepared.tally, self.options, self.kind), opened.remarks)
        return prepared.finish()


def _files(opened: Source, tally: Tally, options: PrepareOptions, kind: str) -> Mapping[str, str]:
    """Return the text files beside the shards."""
    return opened.files or (labels_file(tally.labels) if options.label_column or kind == "tar" else {})


@dataclass(frozen=True)
class _Format:
    """How a format is read: the loader, called with the path, the options and OUT, and the options that it accepts."""

    load: Callable[[Path, PrepareOptions, Path], Source]
    accepts: tuple[Literal["images", "answers", "columns"], ...] = ()
    captions: str = ""
    """Advice about images without captions."""


def _folder(path: Path, options: PrepareOptions, out: Path) -> Source:
    if options.label_column:
        return class_folders.load(path, options.class_names, options.encoding, out)
    return folder.load(path, options.encoding, out)


UNCAPTIONED = ("cifar", "nocaps")
"""Formats whose images need no caption; those of NoCaps's test set are not published."""

_FORMATS = {
    "vqav2": _Format(lambda path, o, out: vqav2.load(path, o.images, _answers(o)), ("images", "answers")),
    "visual-genome": _Format(
        lambda path, o, out: visual_genome.load(path, o.images, _answers(o)), ("images", "answers")
    ),
    "visual-genome-regions": _Format(lambda path, o, out: visual_genome_regions.load(path, o.images), ("images",)),
    "nlvr2": _Format(lambda path, o, out: nlvr2.load(path, o.images), ("images",)),
    "snli-ve": _Format(lambda path, o, out: snli_ve.load(path, o.images), ("images",)),
    "easy-vqa": _Format(lambda path, o, out: easy_vqa.load(path)),
    "cifar": _Format(lambda path, o, out: cifar.load(path)),
    "nocaps": _Format(lambda path, o, out: nocaps.load(path, o.images), ("images",)),
    "label-maps": _Format(lambda path, o, out: label_maps.load(path)),
    "folder": _Format(_folder, captions="put .txt files beside the images"),
    "karpathy": _Format(lambda path, o, out: karpathy.load(path, o.images), ("images",)),
    "captions": _Format(lambda path, o, out: coco_captions.load(path, o.images), ("images",)),
    "tar": _Format(
        lambda path, o, out: webdataset.load(path, o.encoding, out),
        captions="add a member .txt, or .json with a caption, to each sample",
    ),
    "table": _Format(
        lambda path, o, out: tables.load(path, o.images, _columns(o), encoding=o.encoding, exclude=out),
        ("images", "columns"),
        captions="give the caption column with --text",
    ),
}


def _answers(options: PrepareOptions) -> tuple[str, ...]:
    return read_vocabulary(options.answers) if options.answers else ()


def _columns(options: PrepareOptions) -> Columns:
    label = "" if options.label_column == FOLDER else options.label_column
    return Columns(options.image_column, options.text_columns, options.split_column, label, options.keep)


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
    columns = (options.image_column, options.text_columns, options.split_column, not by_folder and options.label_column)
    groups = (
        ("columns", any(columns), "--image, --text, --label and --split-column are for tables"),
        ("answers", options.answers, "--answers is for VQAv2 and Visual Genome"),
        ("images", options.images, "--images is for tables and JSON files that name images"),
    )
    for group, is_given, message in groups:
        if is_given and group not in _FORMATS[kind].accepts:
            raise DualfuseError(f"{message}, but this source has the format {kind!r}")


def _advice(kind: str, options: PrepareOptions, remarks: Iterable[str]) -> Mapping[str, str]:
    """Return what to do about items that are skipped, by the most common reason; "": about others."""
    format_ = _FORMATS[kind]
    other = "another" if options.images else "the"
    missing = f"give {other} folder of images with --images, so that {{name}} is found below it"
    captions = ", or ".join(filter(None, (format_.captions, "use --images-only")))
    rest = "; ".join((*remarks, "see skipped.jsonl"))
    return {
        MISSING: missing if "images" in format_.accepts else rest,
        "no caption": "; ".join((captions, *remarks)),
        "": rest,
    }


def _request(kind: str, path: Path, options: PrepareOptions) -> dict[str, object]:
    """Return what determines the output, as JSON values; without folders, so that the source may be moved."""
    paths = {"images": options.images, "answers": options.answers, "class_names": options.class_names}
    values = asdict(options) | {name: file.name if file else "" for name, file in paths.items()} | {"num_workers": 0}
    values |= {"text_columns": list(options.text_columns), "keep": list(options.keep)}
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
