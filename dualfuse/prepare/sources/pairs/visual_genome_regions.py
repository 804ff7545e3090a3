"""Visual Genome's ``region_descriptions.json``: about 50 short captions per image, for pre-training on pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from sys import intern
from typing import Any

from dualfuse.prepare.sources.questions.common import head, read_json
from dualfuse.prepare.sources.source import Item, Source
from dualfuse.prepare.sources.visual_genome_images import IMAGE_DATA, GenomeImages

FILE = "region_descriptions.json"


def has_regions(path: Path) -> bool:
    """Return whether a file has region descriptions of Visual Genome, by its first bytes."""
    first = head(path).lstrip() if path.is_file() else b""
    return first.startswith(b"[") and b'"regions"' in first and b'"region_id"' in first


def load(path: Path, images: Path | None) -> Source:
    """Return each image with the descriptions of its regions as captions, all in the split train.

    A description that an image has twice is kept once, as in the code of METER and BridgeTower; a remark counts them.
    ``images`` is the parent of ``VG_100K`` and ``VG_100K_2``; by default, they are searched around the file. With
    ``image_data.json`` beside it, images that are also in COCO have their number there as ``coco_id``. Regions without
    a description are items with that problem.
    """
    descriptions: dict[int, dict[str, None]] = defaultdict(dict)  # as an ordered set
    incomplete, repeated = list[int](), 0
    for number, regions in enumerate(read_json(path, _reduce)):
        for region in regions if isinstance(regions, list) else [None]:
            if region is None:
                incomplete.append(number)
                continue
            image, text = region
            repeated += text in descriptions[image]
            descriptions[image][text] = None
    found = GenomeImages.of(path, images)
    remarks = [] if found.has_data else [f"missing: {IMAGE_DATA}; so no image has its coco_id"]
    if repeated:
        remarks.append(f"{repeated:,} repeated descriptions of an image were removed")
    total = len(descriptions) + len(incomplete)
    return Source(_items(descriptions, found, path.name, incomplete), total, remarks=remarks)


def _reduce(entry: dict[str, Any]) -> object:  # Any: what a file holds
    if "regions" in entry:
        return entry["regions"]
    match entry:
        case {"image_id": int(image), "phrase": str(phrase)}:
            return image, intern(" ".join(phrase.split()))
    return None


def _items(
    descriptions: Mapping[int, Mapping[str, None]], images: GenomeImages, file: str, incomplete: Sequence[int]
) -> Iterator[Item]:
    for number, texts in descriptions.items():
        image = images[number]
        meta = {"image_id": number} | ({"coco_id": image.coco} if image.coco else {})
        yield Item(image.name, images.find(image.name), tuple(filter(None, texts)), "train", meta)
    for number in incomplete:
        yield Item(f"{file}: entry {number}", b"", problem="incomplete entry")
