"""Embeddings of images or texts as a file, for any vector database: embedded in parts, so that a run can resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.parallel_map import parallel_map
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample
from dualfuse.data.text.decode import stream_lines
from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.files import read_json_object
from dualfuse.hub import LoadedModel
from dualfuse.inference.encode import SkippedImage, embed_images
from dualfuse.inference.table import input_table
from dualfuse.io import atomic_write, remove_folder, write_json
from dualfuse.prepare.sources.columns import Columns
from dualfuse.prepare.sources.source import Item, Slice
from dualfuse.printable import json_line
from dualfuse.progress import track
from dualfuse.search.collection import Collection
from dualfuse.search.index import fingerprint
from dualfuse.search.queries import TABLES

Value = TypeVar("Value")

SUFFIXES = (".parquet", ".npy", ".jsonl")
PART_SIZE = 1024
"""Items of a part: what an interruption loses at most."""
EMBEDDING, NAME = "embedding", "name"
"""Columns of the result that dualfuse writes."""


@dataclass(frozen=True)
class Entry:
    """An image or a text to embed, with the columns of its owner."""

    name: str
    read: Callable[[], bytes] | None
    """Return the image file; None: the name is a text."""
    columns: Mapping[str, object]


@dataclass(frozen=True)
class Part:
    """Consecutive entries: the records (name and columns) of K embedded ones, embeddings (K, D), and the skipped."""

    records: list[dict[str, Any]]  # Any: JSON values
    embeddings: np.ndarray
    skipped: list[SkippedImage]


@dataclass(frozen=True)
class EmbeddedFile:
    """What was written: the number of embeddings and their width, how many of them an earlier run made, the skipped."""

    count: int
    width: int
    resumed: int
    skipped: tuple[SkippedImage, ...]


def write_embeddings(
    model: LoadedModel, entries: Iterable[Entry], out: Path, *, total: int, source: str, batch_size: int = 64
) -> EmbeddedFile:
    """Write unit embeddings with names and columns to ``out``: .parquet, .jsonl, or .npy with a .names.jsonl beside it.

    Finished parts are kept in ``out``.parts until all are there, so that the same call resumes; parts of other weights
    or of another ``source`` are not used. Skipped entries are listed in ``out``.skipped.jsonl. Raises DualfuseError if
    ``out`` exists, and if nothing could be embedded.
    """
    model.task.check_search()
    check_out(out)
    folder, stamp = out.with_name(f"{out.name}.parts"), {"model": fingerprint(model), "source": source}
    _open_parts(folder, stamp)
    parts, resumed = list[Path](), 0
    chunks = track(_batches(entries, PART_SIZE), total=-(-total // PART_SIZE), what="parts")
    for number, chunk in enumerate(chunks):
        parts.append(path := folder / f"{number:06d}.npz")
        digest = hashlib.blake2b("\0".join(entry.name for entry in chunk).encode(), digest_size=8).hexdigest()
        if (stored := _read_part(path, digest)) is not None:
            resumed += len(stored.records)
            continue
        _write_part(path, digest, embed_part(model, chunk, batch_size))
    return _finish(out, folder, parts, resumed)


def _batches(values: Iterable[Value], size: int) -> Iterator[tuple[Value, ...]]:
    values = iter(values)
    while batch := tuple(islice(values, size)):
        yield batch


def check_out(out: Path) -> None:
    """Raise DualfuseError unless ``out`` is a new file in one of the formats that can be written here."""
    if out.suffix not in SUFFIXES:
        raise DualfuseError(f"{out} should end in {', '.join(SUFFIXES)}")
    if out.exists():
        raise DualfuseError(f"{out} exists; give another file, or move it away")
    if out.suffix == ".parquet":
        _pyarrow()


def embed_part(model: LoadedModel, entries: Sequence[Entry], batch_size: int = 64) -> Part:
    """Return the embeddings of some entries; unreadable images are skipped. It has no side effects."""
    readable, skipped, parts = list[Entry](), list[SkippedImage](), list[np.ndarray]()
    read = parallel_map(partial(_read, model.processor), entries)
    for batch in _batches(read, batch_size):
        inputs = [(entry, value) for entry, value in batch if not isinstance(value, SkippedImage)]
        skipped += [value for _, value in batch if isinstance(value, SkippedImage)]
        readable += [entry for entry, _ in inputs]
        images = [value for _, value in inputs if isinstance(value, Tensor)]
        if images:
            parts.append(embed_images(model.task, torch.stack(images)).numpy())
        elif inputs:
            parts.append(model.encode_text([entry.name for entry, _ in inputs]))
    own = (NAME, EMBEDDING)
    records = [
        {NAME: entry.name, **{f"{key}_" if key in own else key: value for key, value in entry.columns.items()}}
        for entry in readable
    ]
    return Part(records, np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32), skipped)


def image_entries(source: str, keep: Sequence[str] = (), images: Path | None = None) -> tuple[Iterator[Entry], int]:
    """Return the images of a folder, of shards or of a table with an image column, and their number.

    The columns are the kept fields of shards, or the columns ``keep`` of a table, whose images are relative to
    ``images`` or to the table. Raises DualfuseError if there are no images.
    """
    if (path := Path(source).expanduser()).suffix.lower() in TABLES and path.is_file():
        table = input_table(path, images, Columns(keep=tuple(keep)))
        return (_entry(item) for item, _ in table.items()), table.count()
    if keep or images:
        raise DualfuseError(f"columns and a folder of images are for a table, but {source} is none of {listed(TABLES)}")
    collection = Collection.open(source)
    entries = (
        Entry(name, partial(collection.read, number), collection.fields(number))
        for number, name in enumerate(collection.names)
    )
    return entries, len(collection)


def text_entries(path: Path) -> tuple[Iterator[Entry], int]:
    """Return the lines of a text file that are not blank, and their number."""
    total = sum(1 for line in stream_lines(path, "") if line.strip())
    return (Entry(line.strip(), None, {}) for line in stream_lines(path, "") if line.strip()), total


def listed(names: Sequence[str]) -> str:
    """Return names between commas."""
    return ", ".join(names)


def _entry(item: Item) -> Entry:
    def read() -> bytes:
        if item.problem:
            raise DualfuseError(": ".join(filter(None, (item.problem, item.detail))))
        return item.image.read() if isinstance(item.image, Slice) else item.image

    return Entry(item.name, read, dict(item.keep))


def _read(processor: Processor, entry: Entry) -> Tensor | SkippedImage | None:
    if entry.read is None:
        return None
    try:
        return processor.image(entry.read(), np.random.default_rng(0))  # nothing is drawn without augmentation
    except BrokenSample as error:
        return SkippedImage(entry.name, error.reason)
    except OSError as error:
        return SkippedImage(entry.name, error.strerror or str(error))
    except ValueError as error:
        return SkippedImage(entry.name, str(error))


def _open_parts(folder: Path, stamp: Mapping[str, str]) -> None:
    """Create the folder of parts; one of another model or source is replaced."""
    path = folder / "stamp.json"
    if path.is_file() and read_json_object(path) == stamp:
        return
    if folder.exists():
        if not path.is_file():
            raise DualfuseError(f"{folder} exists and holds no parts of an earlier run; move it away")
        remove_folder(folder)
    folder.mkdir(parents=True)
    write_json(path, stamp)


def _write_part(path: Path, digest: str, part: Part) -> None:
    skipped = [vars(each) for each in part.skipped]
    content = json.dumps({"digest": digest, "records": part.records, "skipped": skipped}, default=str)
    with atomic_write(path) as partial_path, partial_path.open("wb") as file:
        np.savez(file, embeddings=part.embeddings, content=np.frombuffer(content.encode(), dtype=np.uint8))


def _read_part(path: Path, digest: str = "") -> Part | None:
    """Return a part; None if it is not there, is damaged, or is one of other entries."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            embeddings, content = stored["embeddings"], json.loads(stored["content"].tobytes())
    except (OSError, ValueError, KeyError):
        return None
    if digest and content["digest"] != digest:
        return None
    return Part(content["records"], embeddings, [SkippedImage(**each) for each in content["skipped"]])


def _part(path: Path) -> Part:
    part = _read_part(path)
    if part is None:
        raise DualfuseError(f"{path} has changed while it was read; rerun the command")
    return part


def _finish(out: Path, folder: Path, paths: Sequence[Path], resumed: int) -> EmbeddedFile:
    """Join the parts into ``out`` and remove them."""
    skipped = tuple(each for path in paths for each in _part(path).skipped)
    parts = [path for path in paths if _part(path).records]
    if not parts:
        reasons = "; ".join(f"{each.name}: {each.reason}" for each in skipped[:3])
        raise DualfuseError(f"none of the {len(skipped)} inputs can be embedded; the first: {reasons}")
    number, width = sum(len(_part(path).records) for path in parts), _part(parts[0]).embeddings.shape[1]
    if skipped:
        with atomic_write(out.with_name(f"{out.name}.skipped.jsonl")) as path:
            path.write_text("".join(f"{json_line(vars(each))}\n" for each in skipped), encoding="utf-8")
    writers = {".jsonl": _write_jsonl, ".npy": partial(_write_npy, shape=(number, width)), ".parquet": _write_parquet}
    writers[out.suffix](out, [partial(_part, path) for path in parts])
    remove_folder(folder)
    return EmbeddedFile(number, width, resumed, skipped)


def _write_jsonl(out: Path, parts: Sequence[Callable[[], Part]]) -> None:
    with atomic_write(out) as path, path.open("w", encoding="utf-8") as file:
        for part in (read() for read in parts):
            for record, embedding in zip(part.records, part.embeddings.tolist(), strict=True):
                file.write(f"{json_line({**record, EMBEDDING: embedding})}\n")


def _write_npy(out: Path, parts: Sequence[Callable[[], Part]], *, shape: tuple[int, int]) -> None:
    with atomic_write(out.with_suffix(".names.jsonl")) as path, path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json_line(record)}\n" for read in parts for record in read().records)
    with atomic_write(out) as path, path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for read in parts:
            file.write(np.ascontiguousarray(read().embeddings, dtype="<f4").tobytes())


def _write_parquet(out: Path, parts: Sequence[Callable[[], Part]]) -> None:
    arrow, parquet = _pyarrow()
    columns = list(dict.fromkeys(name for read in parts for record in read().records for name in record))
    tables = []
    for part in (read() for read in parts):
        values = {name: [record.get(name) for record in part.records] for name in columns}
        flat = arrow.array(part.embeddings.reshape(-1), type=arrow.float32())
        embeddings = arrow.FixedSizeListArray.from_arrays(flat, part.embeddings.shape[1])
        tables.append(
            arrow.table({**{name: _column(arrow, each) for name, each in values.items()}, EMBEDDING: embeddings})
        )
    with atomic_write(out) as path:
        parquet.write_table(arrow.concat_tables(tables, promote_options="permissive"), path)


def _column(arrow: Any, values: Sequence[object]) -> Any:  # Any: pyarrow
    """Return an array; values of several types become text."""
    try:
        return arrow.array(values)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError):
        return arrow.array([None if value is None else str(value) for value in values])


def _pyarrow() -> tuple[Any, Any]:  # Any: modules
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("writing a .parquet file", "arrow") from error
    return pyarrow, pyarrow.parquet
