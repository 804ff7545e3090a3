"""Training samples of drawn scenes: images with captions about attributes, relations, counts and negation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations, permutations

import numpy as np

from dualfuse.data.sample import Sample
from dualfuse.data.scenes.cases import AMOUNTS
from dualfuse.data.scenes.shapes import COLORS, FORMS, KINDS, RADII, Scene, png, scatter, split_of
from dualfuse.data.scenes.statements import INVERSE, Both, Counts, Relation, Statement, Without

SPLITS = ("train", "val", "test")
WORDS = (
    *("a", "there", "is", "are", "and", "no", "left", "right", "of", "above", "below", "one", "two", "three"),
    *(*RADII, *COLORS, *FORMS, *(f"{form}s" for form in FORMS)),
)
"""Every word of every caption."""


def scene_samples(split: str, number: int, seed: int) -> Iterator[Sample]:
    """Yield images of one of ``SPLITS`` with true captions; "shapes" of the meta holds their coordinates.

    Every pair of kinds in an image or a caption is of the split, so that those of the test cases are new. Drawn are two
    or three shapes of any kind, or up to four shapes of two forms, each half of the time; val and test keep mostly
    scenes of two shapes, because few larger ones have pairs of their splits alone.
    """
    rng = np.random.default_rng((seed, SPLITS.index(split)))
    made = 0
    while made < number:
        scene = scatter(_kinds(rng), rng)
        if _is_of(scene, split):
            texts = tuple(caption for statement in _facts(scene, split, rng) for caption in statement.captions)
            meta = {"shapes": [asdict(shape) for shape in scene]}
            yield Sample(f"{made:06d}", png(scene), texts, meta)
            made += 1


def _kinds(rng: np.random.Generator) -> list[str]:
    if rng.random() < 0.5:
        return rng.choice(KINDS, rng.integers(2, 4), replace=False).tolist()
    forms = rng.choice(tuple(FORMS), 2, replace=False).tolist()
    amounts = AMOUNTS[rng.integers(len(AMOUNTS))]
    names = [form for form, amount in zip(forms, amounts, strict=True) for _ in range(amount)]
    return [f"{rng.choice(tuple(RADII))} {rng.choice(COLORS)} {form}" for form in names]


def _is_of(scene: Scene, split: str) -> bool:
    return all(
        split_of(one.kind, other.kind) == split for one, other in combinations(scene, 2) if one.kind != other.kind
    )


def _facts(scene: Scene, split: str, rng: np.random.Generator) -> list[Statement]:
    """Return what is true of a scene: all relations of neighbors, and one each of the other kinds of statements."""
    kinds = sorted({shape.kind for shape in scene})
    facts: list[Statement] = [
        fact
        for pair in permutations(kinds, 2)
        for way in INVERSE
        if (fact := Relation(pair[0], way, pair[1])).holds(scene)
    ]
    if len(kinds) > 1:
        facts.append(Both(*rng.choice(kinds, 2, replace=False).tolist()))
    present = str(rng.choice(kinds))
    absent = [kind for kind in KINDS if kind not in kinds and split_of(present, kind) == split]
    facts.append(Without(present, str(rng.choice(absent))))
    forms = [shape.form for shape in scene]
    if len(set(forms)) == 2:
        facts.append(Counts(*((forms.count(form), form) for form in rng.permutation(sorted(set(forms))).tolist())))
    return facts
