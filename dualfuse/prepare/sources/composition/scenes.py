"""The drawn twin of the benchmarks: cases about scenes whose truth is certain, in memory."""

from __future__ import annotations

from dualfuse.data.scenes.cases import CATEGORIES, SceneCase, draw_cases
from dualfuse.data.scenes.shapes import png
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.composition import Benchmark
from dualfuse.prepare.sources.composition.builder import BenchmarkBuilder
from dualfuse.prepare.sources.source import Slice


def draw(cases: int, seed: int) -> Benchmark:
    """Return ``cases`` cases per category; equal numbers and seeds give equal images and captions."""
    if cases < 1:
        raise DualfuseError(f"{cases} cases per category; give 1 or more")
    builder = BenchmarkBuilder("scenes", _not_a_file)
    for category in CATEGORIES:
        for number, case in enumerate(draw_cases(category, cases, seed)):
            _add(builder, case, f"{category}/{number}")
    return builder.build()


def _add(builder: BenchmarkBuilder, case: SceneCase, key: str) -> None:
    images = [builder.image(f"{key}#{side}", data=png(scene)) for side, scene in enumerate(case.scenes)]
    if len(images) == 1:
        builder.captions(case.category, images[0], case.captions, key=key)
    else:
        builder.pair(case.category, (images[0], images[1]), (case.captions[0], case.captions[1]), key=key)


def _not_a_file(name: str) -> Slice:
    raise AssertionError(f"{name} is drawn")
