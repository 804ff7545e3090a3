"""Labels made of images with names: does this text fit, and do these two images show the same thing?

Names are compared as small letters and numbers alone. Every image and every text of a split comes as often right as
wrong, so that neither tells anything by itself.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, groupby
from pathlib import Path

import numpy as np

from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.data.split import split_by_content
from dualfuse.prepare.shard_writer import write_shards

SPLITS = ("train", "val", "test")
NEAR = "test_near"
"""The test split with wrong ones of the same kind: of an image that shares its most common keywords."""
FITS = ("differs", "fits")
SENTENCE = "both images show the same thing"
UNSEEN = (("test", 0.4), ("val", 0.2))  # shares of the names that pre-training did not see; the rest trains


def name_of(sample: Sample) -> str:
    """Return what an image shows: its first caption in small letters and numbers."""
    return " ".join(re.findall(r"[a-z0-9]+", sample.texts[0].lower()))


def arranged(samples: Sequence[Sample], rng: np.random.Generator | None) -> list[Sample]:
    """Return images of one name side by side; the names as drawn by ``rng``, or without it by kind and keywords."""
    common = Counter(word for sample in samples for word in _keywords(sample))
    places: dict[str, object] = {}
    for sample in samples:
        words = sorted(_keywords(sample), key=lambda word: (-common[word], word))
        place = float(rng.random()) if rng else (str(sample.meta.get("kind")), words)
        places.setdefault(name_of(sample), place)
    return sorted(samples, key=lambda sample: (places[name_of(sample)], name_of(sample)))


def wrong_ones(samples: Sequence[Sample], rng: np.random.Generator | None = None) -> Iterator[tuple[Sample, Sample]]:
    """Return each of ``samples`` with one of another name, a neighbour if without ``rng``; each comes once as such."""
    order = arranged(samples, rng)
    longest = max(len(list(group)) for _, group in groupby(order, key=name_of))
    yield from zip(order, order[longest:] + order[:longest], strict=True)


def write_fits(images: Mapping[str, Sequence[Sample]], out: Path, rng: np.random.Generator) -> Path:
    """Write images into ``out`` and ``out``/fits.csv: photo, says, verdict, split; gives the table.

    Of training and validation half of the wrong texts are those of neighbours.
    """
    out.mkdir(parents=True)
    with (out / "fits.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("photo", "says", "verdict", "split"))
        for split, samples in images.items():
            for sample in samples:
                (out / _file(sample)).write_bytes(sample.image)
            for part, pairs in _wrong_of(split, samples, rng):
                for image, other in pairs:
                    rows.writerow((_file(image), image.texts[0], FITS[1], part))
                    rows.writerow((_file(image), other.texts[0], FITS[0], part))
    return out / "fits.csv"


def write_same(images: Sequence[Sample], seen: frozenset[str], out: Path, rng: np.random.Generator) -> dict[str, int]:
    """Write shards of two images and a sentence, as NLVR2's; gives the number of samples by split.

    Images of one name from two sources are the same thing. Validation and test have only names that are not
    ``seen``, and the other splits have none of theirs.
    """
    by_split: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for sample in images:
        name = name_of(sample)
        by_split["train" if name in seen else split_by_content(name.encode(), UNSEEN)].append(sample)
    numbers = {}
    for split, samples in by_split.items():
        for part, rows in _same_of(split, samples, rng):
            written = list(_two_pictures(part, rows, rng))
            write_shards(written, out, part)
            numbers[part] = len(written)
    return numbers


def _wrong_of(split: str, samples: Sequence[Sample], rng: np.random.Generator):
    """Return the parts that become of a split, and their pairs of an image and a wrong one."""
    if split == "test":
        yield split, wrong_ones(samples, rng)
        yield NEAR, wrong_ones(samples)
    else:
        order = arranged(samples, rng)
        yield split, wrong_ones(order[::2], rng)
        yield split, wrong_ones(order[1::2])


def _same_of(split: str, samples: Sequence[Sample], rng: np.random.Generator):
    """Return the parts of a split, and their rows: two images of one name, and a wrong one in the second's place."""
    by_sources: dict[tuple[str, ...], list[tuple[Sample, Sample]]] = {}
    for _, group in groupby(arranged(samples, None), key=name_of):
        ones = {str(sample.meta["source"]): sample for sample in group}
        for sources in combinations(sorted(ones), 2):
            by_sources.setdefault(sources, []).append((ones[sources[0]], ones[sources[1]]))
    rows: dict[str, list[tuple[Sample, Sample, Sample]]] = {}
    for pairs in (pairs for pairs in by_sources.values() if len(pairs) > 3):
        first = {second.key: first for first, second in pairs}
        for part, wrong in _wrong_of(split, [second for _, second in pairs], rng):
            rows.setdefault(part, []).extend((first[second.key], second, other) for second, other in wrong)
    return rows.items()


def _two_pictures(
    split: str, rows: Sequence[tuple[Sample, Sample, Sample]], rng: np.random.Generator
) -> Iterator[Sample]:
    for number, (first, second, other) in enumerate(rows):
        for pair, (label, shown) in enumerate((("True", second), ("False", other))):
            meta = {"id": f"{split}-{number}-{pair}-0", "label": label, "name": name_of(first)}
            images = (first.image, shown.image) if rng.random() < 0.5 else (shown.image, first.image)
            yield Sample(f"{number:05d}-{pair}", images[0], (SENTENCE,), meta, other_images=images[1:])


def pictures_of(pattern: str) -> dict[str, list[Sample]]:
    """Return the images of each split of shards called like ``pattern``, in which {split} stands for its name."""
    return {split: list(Shards.open(pattern.format(split=split))) for split in SPLITS}


def _keywords(sample: Sample) -> list[str]:
    found = sample.meta.get("keywords")
    return [str(word) for word in found] if isinstance(found, list) else []


def _file(sample: Sample) -> str:
    return f"{sample.key.rpartition('/')[2]}.jpg"
