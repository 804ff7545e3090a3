"""Winoground (Thrush et al. 2022) as on the hub: ``data/examples.jsonl`` and images, or ``data/test-*.parquet``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.evaluation.composition import Benchmark
from dualfuse.prepare.sources.composition.builder import BenchmarkBuilder, fields
from dualfuse.prepare.sources.image_finder import ImageFinder
from dualfuse.prepare.sources.rows import read_rows

FILES = ("examples.jsonl", "metadata.jsonl", "test-*.parquet")


def load(source: Path, find: ImageFinder) -> Benchmark:
    """Return the 400 pairs, by ``collapsed_tag`` (Object, Relation, Both)."""
    builder = BenchmarkBuilder("Winoground", find)
    for path in files(source):
        for row in read_rows(path):
            place = f"row {row.number:,} of {path}"
            if row.problem:
                raise DualfuseError(f"{place}: {row.problem}")
            first, second = fields(dict(row.cells), place, "caption_0", "caption_1")
            images = tuple(_image(builder, row.cells, f"image_{side}", f"{row.number - 1}", place) for side in (0, 1))
            tag, key = str(row.cells.get("collapsed_tag") or "untagged"), str(row.cells.get("id", row.number - 1))
            builder.pair(tag, (images[0], images[1]), (first, second), key=key)
    return builder.build()


def files(source: Path) -> list[Path]:
    """Return the files with the examples in a folder or its folder ``data``; raises DualfuseError without any."""
    if source.is_file():
        return [source]
    found = next(
        (sorted(folder.glob(name)) for name in FILES for folder in (source / "data", source) if any(folder.glob(name))),
        [],
    )
    if not found:
        raise DualfuseError(
            f"{source} has no Winoground: it needs data/examples.jsonl and the unpacked data/images.zip, or "
            "data/test-*.parquet, of https://huggingface.co/datasets/facebook/winoground"
        )
    return found


def _image(builder: BenchmarkBuilder, cells: Mapping[str, object], name: str, number: str, place: str) -> int:
    match cells.get(name):
        case str(file) if file:
            return builder.image(file if file.endswith((".png", ".jpg")) else f"{file}.png")
        case {"bytes": bytes(data)} if data:
            return builder.image(f"ex_{number}_{name}", data=data)
    raise DualfuseError(f"{place} has no {name}; download the benchmark again")
