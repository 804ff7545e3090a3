"""The composition benchmarks by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.evaluation.composition import Benchmark
from dualfuse.prepare.sources.composition import aro, negbench, sugarcrepe, winoground
from dualfuse.prepare.sources.composition.builder import check_images
from dualfuse.prepare.sources.image_finder import ImageFinder, around

SCENES = "scenes"
READERS: dict[str, Callable[[Path, ImageFinder], Benchmark]] = {
    "winoground": winoground.load,
    "aro": aro.load,
    "sugarcrepe": sugarcrepe.load,
    "sugarcrepe++": sugarcrepe.load_plus_plus,
    "negbench": negbench.load,
}
"""Readers of the files of a benchmark; ``SCENES`` is drawn instead."""
NAMES = (*READERS, SCENES)
FOLDERS = ("images", "val2017", "coco/images/val2017", "coco/val2017", "data/images")
"""Usual folders of the images, beside the files of a benchmark."""


def open_benchmark(name: str, source: Path, images: Path | None = None, *, allow_missing: bool = False) -> Benchmark:
    """Return a benchmark from the folder of its files, or one of them, as its owner publishes them.

    ``images`` is the folder of the images; by default they are searched beside the files. Raises DualfuseError for an
    unknown name, for files that are not those of the benchmark, and for missing images unless ``allow_missing`` is set.
    """
    if name not in READERS:
        raise DualfuseError(f"{name!r} is not a benchmark; give one of {', '.join(NAMES)}")
    if not source.exists():
        raise DualfuseError(f"{source} does not exist; give the folder with the files of {name}")
    folder = source if source.is_dir() else source.parent
    where = (images,) if images else around(folder, *FOLDERS)
    benchmark = READERS[name](source, ImageFinder(*where))
    if not allow_missing:
        check_images(benchmark, where)
    return benchmark
