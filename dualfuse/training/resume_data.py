"""A run goes on with the data it began with: with other samples every step from there on would see others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dualfuse import distributed as dist
from dualfuse.data.map_dataset import MapDataset
from dualfuse.errors import DualfuseError
from dualfuse.io import listing, write_json

FILE = "data.json"

Files = Mapping[str, str]  # what stands for the contents of a file, by its name in keys


def write_data(out: Path, sources: Sequence[str], sets: Sequence[MapDataset]) -> None:
    """Keep what the sets hold beside the checkpoints, from the first process; a reader sees a whole file or none."""
    if dist.rank() == 0:
        content = [
            {"source": source, "samples": len(opened), "files": opened.digests()}
            for source, opened in zip(sources, sets, strict=True)
        ]
        write_json(out / FILE, content)


def check_same_data(out: Path, sets: Sequence[MapDataset]) -> None:
    """Raise ``DualfuseError``, which names the files, where a set has others than the run in ``out`` began with.

    Told apart are names and sizes of samples, and the rows of texts, wherever their files lie now and whenever they
    were written; an image that was exchanged for one of as many bytes is not noticed.
    """
    if not (out / FILE).is_file():
        return  # a run of an earlier version
    try:
        before: list[Files] = [each["files"] for each in json.loads((out / FILE).read_text(encoding="utf-8"))]
        lines = [line for then, now in zip(before, sets, strict=True) for line in _differences(then, now.digests())]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DualfuseError(f"{out / FILE} is damaged ({error}); delete it if the data is what it was") from error
    if lines:
        shown = listing(lines, separator="\n  ")
        raise DualfuseError(
            f"{out} holds a run that started with other data:\n  {shown}\n"
            "Put the files back to resume it, or give another --out to start anew"
        )


def _differences(then: Files, now: Files) -> list[str]:
    return [
        *(f"{name} has gone" for name in then if name not in now),
        *(f"{name} is new" for name in now if name not in then),
        *(f"{name} holds other samples" for name, digest in then.items() if now.get(name, digest) != digest),
    ]
