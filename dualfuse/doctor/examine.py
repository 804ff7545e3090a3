"""Examination of a data set: defective images and texts, duplicates, and leaks between splits."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from dualfuse.data.image.image_grid import Tile, image_grid, save_drawing
from dualfuse.data.map_dataset import find_files
from dualfuse.data.parallel_map import parallel_map
from dualfuse.data.sample import BrokenSample
from dualfuse.data.shards.shards import Shards
from dualfuse.data.split import split_in_name
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.doctor.evidence import Evidence, Part
from dualfuse.doctor.findings import Report
from dualfuse.doctor.inspect import SampleFindings, examine_sample
from dualfuse.errors import DualfuseError
from dualfuse.progress import track

TILES = 48  # of the grid
DEFECT_TILES = 24  # maximum number of samples with findings
SEED = 1


def examine(path: Path, *, text_length: int = 40, save_image: Path | None = None) -> Report:
    """Examine every sample of the shards at ``path``: a tar, a folder of tars, or a glob pattern.

    Splits are recognized by the names of the tars: ``train-00000.tar``, ``food-val-00003.tar``. Texts are over-long if
    they have more than ``text_length`` tokens, start and end included. With ``save_image`` (.png or .jpg), some samples
    are drawn, those with defects first, and the report is written beside the image as JSON. Only hashes are kept in
    memory.
    """
    if save_image and save_image.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise DualfuseError(f"the image {save_image} must end in .png or .jpg")
    evidence = Evidence()
    for tar in find_files(path, (".tar",), "tar file"):
        _open(tar, evidence)
    text = TextTransform(text_length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # too large images are a finding
        inspect = partial(_inspect, evidence, text=text)
        total = sum(len(part.shards) for part in evidence.parts)
        numbers = track(range(total), total=total, what="samples")
        for _, findings in parallel_map(inspect, numbers):
            evidence.add(findings)
    evidence.compare()
    report = Report(str(path), _splits(evidence), evidence.findings())
    if save_image:
        if evidence.content:
            save_drawing(draw(evidence, str(path)), save_image)
        report.save(save_image.with_suffix(".json"))
    return report


def split_of(tar: Path) -> str:
    """Return the split in the name of a tar, or else the name without its number."""
    return split_in_name(tar.stem) or re.sub(r"[-_]?\d+$", "", tar.stem) or "all"


def draw(evidence: Evidence, heading: str) -> Image.Image:
    """Return a grid of samples: some of each finding first, then random ones."""
    notes: dict[int, list[str]] = {}
    kinds = [(name, [n for _, numbers in evidence.examples[name] for n in numbers]) for name in evidence.counts]
    for turn in range(DEFECT_TILES):
        for name, numbers in kinds:
            if turn < len(numbers) and (numbers[turn] in notes or len(notes) < DEFECT_TILES):
                notes.setdefault(numbers[turn], []).append(name)
    total = len(evidence.content)
    drawn = np.random.default_rng(SEED).permutation(total)[:TILES].tolist()
    others = [number for number in drawn if number not in notes][: TILES - len(notes)]
    tiles = [_tile(evidence, number, tuple(dict.fromkeys(names))) for number, names in notes.items()]
    tiles += [_tile(evidence, number, ()) for number in sorted(others)]
    return image_grid(tiles, columns=8, cell=176, heading=f"{heading}: {len(tiles)} of {total:,}")


def _open(tar: Path, evidence: Evidence) -> None:
    """Add a tar to the set, or note that it cannot be read."""
    try:
        shards = Shards.open(tar)
    except ValueError as error:
        evidence.note("unreadable shard", (), str(error))
        return
    last = evidence.parts[-1] if evidence.parts else None
    evidence.parts.append(Part(split_of(tar), shards, last.first + len(last.shards) if last else 0))


def _inspect(evidence: Evidence, number: int, *, text: TextTransform) -> SampleFindings:
    part = evidence.part(number)
    return examine_sample(part.shards, number - part.first, text)


def _splits(evidence: Evidence) -> dict[str, dict[str, int]]:
    """Count shards, images and texts of each split."""
    texts = Counter(evidence.part(owner).split for owner in evidence.owners)
    splits: dict[str, dict[str, int]] = {}
    for part in evidence.parts:
        counts = splits.setdefault(part.split, {"shards": 0, "images": 0, "texts": texts[part.split]})
        counts["shards"] += 1
        counts["images"] += len(part.shards)
    return splits


def _tile(evidence: Evidence, number: int, defects: tuple[str, ...]) -> Tile:
    part = evidence.part(number)
    try:
        sample = part.shards[number - part.first]
    except BrokenSample as error:
        return Tile(b"", "", _name(error.key), "; ".join(defects), True)
    caption = " / ".join(sample.texts) or "(no text)"
    return Tile(sample.image, caption, _name(sample.key), "; ".join(defects), bool(defects))


def _name(key: str) -> str:
    return key.rpartition("/")[2]
