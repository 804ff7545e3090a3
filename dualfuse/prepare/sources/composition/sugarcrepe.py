"""SugarCrepe (Hsieh et al. 2023) and SugarCrepe++ (Dumpala et al. 2024): a JSON file per category, COCO val2017."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.evaluation.composition import Benchmark
from dualfuse.files import MAX_TABLE, read_json
from dualfuse.prepare.sources.composition.builder import BenchmarkBuilder, fields
from dualfuse.prepare.sources.image_finder import ImageFinder

FILES = (
    *("add_att.json", "add_obj.json", "replace_att.json", "replace_obj.json", "replace_rel.json"),
    *("swap_att.json", "swap_obj.json"),
)


def load(source: Path, find: ImageFinder) -> Benchmark:
    """Return the cases of SugarCrepe, one true and one false caption each, by category."""
    return _load("SugarCrepe", source, find, ("caption", "negative_caption"))


def load_plus_plus(source: Path, find: ImageFinder) -> Benchmark:
    """Return the cases of SugarCrepe++: two true captions and a false one each, by category."""
    return _load("SugarCrepe++", source, find, ("caption", "caption2", "negative_caption"))


def _load(name: str, source: Path, find: ImageFinder, texts: tuple[str, ...]) -> Benchmark:
    builder = BenchmarkBuilder(name, find)
    paths = [source] if source.is_file() else [path for path in sorted(source.glob("*.json")) if path.name in FILES]
    for path in paths:
        for key, entry in _entries(path):
            file, *captions = fields(entry, f"entry {key} of {path}", "filename", *texts)
            image = builder.image(file)
            builder.captions(path.stem, image, captions, true=len(texts) - 1, key=f"{path.stem}/{key}")
    if not paths:
        raise DualfuseError(f"{source} has none of the files {', '.join(FILES)} of {name}")
    return builder.build()


def _entries(path: Path) -> Iterator[tuple[str, object]]:
    """Yield the entries of an object by number, as SugarCrepe has them, or of a list, as SugarCrepe++ does."""
    match read_json(path, MAX_TABLE):
        case {**entries}:
            yield from entries.items()
        case [*entries]:
            yield from ((str(number), entry) for number, entry in enumerate(entries))
        case _:
            raise DualfuseError(f"{path} holds neither a JSON object nor a list of cases")
