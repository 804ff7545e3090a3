"""ARO (Yuksekgonul et al. 2023): VG-Relation, VG-Attribution, and the test cases of COCO-Order and Flickr30k-Order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.evaluation.composition import Benchmark
from dualfuse.files import MAX_TABLE, read_json
from dualfuse.prepare.sources.composition.builder import BenchmarkBuilder, Box, fields
from dualfuse.prepare.sources.image_finder import ImageFinder

RELATION, ATTRIBUTION = "visual_genome_relation.json", "visual_genome_attribution.json"
CONTENT = (
    f"{RELATION}, {ATTRIBUTION} and images/ of https://github.com/mertyg/vision-language-models-are-bows, or json "
    'files with the test_cases of its COCO_Order or Flickr30k_Order: [{"image": ..., "caption_options": [true, ...]}]'
)


def load(source: Path, find: ImageFinder) -> Benchmark:
    """Return the cases of the files in a folder.

    Images of VG-Relation and VG-Attribution are cropped to their boxes; their groups are relations, and pairs of
    attributes. Categories of order have the names of their files.
    """
    builder = BenchmarkBuilder("ARO", find)
    paths = [source] if source.is_file() else sorted(source.glob("*.json"))
    for path in paths:
        entries = read_json(path, MAX_TABLE)
        for number, entry in enumerate(entries if isinstance(entries, list) else []):
            place = f"entry {number:,} of {path}"
            if isinstance(entry, dict) and "caption_options" in entry:
                _order(builder, path.stem, entry, place)
            elif path.name in (RELATION, ATTRIBUTION):
                _boxed(builder, path.name, entry, place)
    benchmark = builder.build()
    if not benchmark.cases:
        raise DualfuseError(
            f"{source} has no cases of ARO; it needs {CONTENT}. The shuffled captions depend on a part-of-speech "
            "tagger, so coco_karpathy_test.json alone does not determine them"
        )
    return benchmark


def _order(builder: BenchmarkBuilder, category: str, entry: Mapping[str, object], place: str) -> None:
    (name,) = fields(entry, place, "image")
    match entry["caption_options"]:
        case [str(_), str(_), *others] as captions if all(isinstance(other, str) for other in others):
            builder.captions(category, builder.image(name), captions)
        case _:
            raise DualfuseError(f"{place} needs two or more texts in caption_options, the true one first")


def _boxed(builder: BenchmarkBuilder, file: str, entry: object, place: str) -> None:
    name, true, false = fields(entry, place, "image_path", "true_caption", "false_caption")
    assert isinstance(entry, dict)  # by fields
    match entry:
        case {"bbox_x": int(x), "bbox_y": int(y), "bbox_w": int(width), "bbox_h": int(height)}:
            box: Box = (x, y, width, height)
        case _:
            raise DualfuseError(f"{place} has no box in bbox_x, bbox_y, bbox_w and bbox_h")
    match entry:
        case {"relation_name": str(relation)} if file == RELATION:
            group = relation
        case {"attributes": [first, second, *_]}:
            group = f"{first}_{second}"
        case _:
            group = ""
    category = "vg_relation" if file == RELATION else "vg_attribution"
    builder.captions(category, builder.image(name, box=box), (true, false), group=group)
