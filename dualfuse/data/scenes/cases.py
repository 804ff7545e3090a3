"""Test cases about composition on drawn scenes: true captions, and false ones that differ as little as possible.

True and false captions of a category have the same distribution, so that a model which does not look at the image is
right by chance only; the exception is shuffled word order, as in ARO.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from dualfuse.data.scenes.order import shuffles
from dualfuse.data.scenes.shapes import COLORS, FORMS, KINDS, RADII, Scene, scatter, split_of
from dualfuse.data.scenes.statements import INVERSE, Both, Counts, Relation, Statement, Without

AMOUNTS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
"""Numbers of shapes of two forms; at most four shapes fit into a scene."""
TRIES = 10_000


@dataclass(frozen=True)
class SceneCase:
    """One test: one scene with a true caption and false ones, or two scenes with one caption each."""

    category: str
    scenes: tuple[Scene, ...]
    captions: tuple[str, ...]
    """Of one scene: the true caption, then the false ones. Of two: the true caption of each."""


Maker = Callable[[str, np.random.Generator], SceneCase | None]
"""Returns a case of a category, or None if what was drawn does not fit."""


def draw_cases(category: str, number: int, seed: int) -> Iterator[SceneCase]:
    """Yield ``number`` cases of one of ``CATEGORIES``; those of a smaller number are the first of a larger one.

    The pairs of kinds in true and false captions are of the test split: no training image shows them.
    """
    rng = np.random.default_rng((seed, tuple(CATEGORIES).index(category)))
    for _ in range(number):
        cases = (CATEGORIES[category](category, rng) for _ in range(TRIES))
        yield next(case for case in cases if case is not None)


def _replaced_attribute(category: str, rng: np.random.Generator) -> SceneCase | None:
    """Replace the size, the color or the form of one shape: SugarCrepe's replace_att."""
    first, second = _test_pair(rng)
    part = int(rng.integers(3))
    words = first.split()
    words[part] = str(rng.choice([word for word in (tuple(RADII), COLORS, tuple(FORMS))[part] if word != words[part]]))
    other = " ".join(words)
    if other == second or split_of(other, second) != "test":
        return None
    return _case(category, scatter((first, second), rng), Both(first, second), Both(other, second), rng)


def _swapped_attributes(category: str, rng: np.random.Generator) -> SceneCase | None:
    """Exchange the sizes, or the colors, of two shapes: the same words in another order, as ARO's VG-Attribution."""
    first, second = (kind.split() for kind in _test_pair(rng))
    part = int(rng.integers(2))
    foil = [list(first), list(second)]
    foil[0][part], foil[1][part] = second[part], first[part]
    kinds, swapped = {" ".join(first), " ".join(second)}, [" ".join(words) for words in foil]
    if kinds & set(swapped) or split_of(*swapped) != "test":
        return None
    statement = Both(" ".join(first), " ".join(second))
    return _case(category, scatter((statement.first, statement.second), rng), statement, Both(*swapped), rng)


def _replaced_relation(category: str, rng: np.random.Generator) -> SceneCase | None:
    """Replace the relation by its opposite: SugarCrepe's replace_rel."""
    scene, fact = _related(rng)
    return _case(category, scene, fact, Relation(fact.first, INVERSE[fact.relation], fact.second), rng)


def _swapped_relation(category: str, rng: np.random.Generator) -> SceneCase | None:
    """Exchange the two shapes of a relation: the same words in another order, as ARO's VG-Relation."""
    scene, fact = _related(rng)
    return _case(category, scene, fact, Relation(fact.second, fact.relation, fact.first), rng)


def _counted(category: str, rng: np.random.Generator) -> SceneCase | None:
    """Give other numbers: "two circles and one square" for "one circle and two squares"."""
    true, false = (AMOUNTS[number] for number in rng.choice(len(AMOUNTS), 2, replace=False))
    one, other = rng.choice(tuple(FORMS), 2, replace=False).tolist()
    forms = [one] * true[0] + [other] * true[1]
    kinds = [f"{rng.choice(tuple(RADII))} {rng.choice(COLORS)} {form}" for form in forms]
    right, wrong = (Counts((amount[0], one), (amount[1], other)) for amount in (true, false))
    return _case(category, scatter(kinds, rng), right, wrong, rng)


def _swapped_negation(category: str, rng: np.random.Generator) -> SceneCase | None:
    """Exchange the kind that is present and the one that is absent: the same words in another order."""
    present, absent = _test_pair(rng)
    scene = _with_others((present,), absent, rng)
    return _case(category, scene, Without(present, absent), Without(absent, present), rng)


def _inserted_negation(category: str, rng: np.random.Generator) -> SceneCase | None:
    """Insert "no" into a true caption, or remove it; each is half of the cases."""
    first, second = _test_pair(rng)
    statements: tuple[Statement, Statement] = (Both(first, second), Without(first, second))
    if rng.random() < 0.5:
        return _case(category, _with_others((first, second), "", rng), *statements, rng)
    return _case(category, _with_others((first,), second, rng), statements[1], statements[0], rng)


def _shuffled(category: str, rng: np.random.Generator) -> SceneCase | None:
    """Shuffle the words of a true caption in the four ways of ARO's COCO-order."""
    scene, fact = _related(rng)
    caption = str(rng.choice(fact.captions))
    return SceneCase(category, (scene,), (caption, *shuffles(caption, scene, rng)))


def _paired(category: str, rng: np.random.Generator) -> SceneCase | None:
    """Draw two scenes with the same two shapes, whose captions have the same words: Winoground."""
    first, second = _test_pair(rng)
    relation = str(rng.choice(tuple(INVERSE)))
    facts = (Relation(first, relation, second), Relation(second, relation, first))
    way = int(rng.integers(2))
    return SceneCase(
        category, tuple(_scene_of(each, rng) for each in facts), tuple(each.captions[way] for each in facts)
    )


CATEGORIES: dict[str, Maker] = {
    "attribute/replace": _replaced_attribute,
    "attribute/swap": _swapped_attributes,
    "relation/replace": _replaced_relation,
    "relation/swap": _swapped_relation,
    "count/replace": _counted,
    "negation/swap": _swapped_negation,
    "negation/insert": _inserted_negation,
    "order/shuffle": _shuffled,
    "order/pair": _paired,
}
"""The makers of cases by category; the position of a category is part of its seed."""


@cache
def test_pairs() -> tuple[tuple[str, str], ...]:
    """Return the pairs of different kinds of the test split, in both orders."""
    return tuple(pair for pair in product(KINDS, KINDS) if pair[0] != pair[1] and split_of(*pair) == "test")


def _test_pair(rng: np.random.Generator) -> tuple[str, str]:
    return test_pairs()[rng.integers(len(test_pairs()))]


def _case(category: str, scene: Scene, true: Statement, false: Statement, rng: np.random.Generator) -> SceneCase:
    """Return the case with both captions in the same one of their two forms, drawn at random."""
    way = int(rng.integers(2))
    return SceneCase(category, (scene,), (true.captions[way], false.captions[way]))


def _related(rng: np.random.Generator) -> tuple[Scene, Relation]:
    """Return a scene of two or three shapes, and a relation that is true of it."""
    first, second = _test_pair(rng)
    fact = Relation(first, str(rng.choice(tuple(INVERSE))), second)
    return _scene_of(fact, rng, others=int(rng.integers(2))), fact


def _scene_of(fact: Relation, rng: np.random.Generator, others: int = 0) -> Scene:
    """Return a scene that makes a relation true, with ``others`` further shapes, 0 to 2, of other kinds."""
    while True:
        kinds = (fact.first, fact.second, *_others((fact.first, fact.second), others, rng))
        scene = scatter(kinds, rng)
        if fact.holds(scene):
            return scene


def _with_others(kinds: tuple[str, ...], absent: str, rng: np.random.Generator) -> Scene:
    """Return a scene of two or three shapes with ``kinds`` and without ``absent``."""
    number = int(rng.integers(2, 4)) - len(kinds)
    return scatter((*kinds, *_others((*kinds, absent), number, rng)), rng)


def _others(kinds: Sequence[str], number: int, rng: np.random.Generator) -> list[str]:
    return rng.choice([kind for kind in KINDS if kind not in kinds], number, replace=False).tolist()
