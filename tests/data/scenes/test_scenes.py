"""Statements are true and false by hand, cases have a true caption and false ones, and equal seeds give equal bytes."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from PIL import ImageColor

from dualfuse.data.scenes.cases import CATEGORIES, SceneCase, draw_cases
from dualfuse.data.scenes.order import shuffles
from dualfuse.data.scenes.samples import SPLITS, WORDS, scene_samples
from dualfuse.data.scenes.shapes import Scene, Shape, coverage, draw, place, png, split_of
from dualfuse.data.scenes.statements import Both, Counts, Relation, Without, parse

RED, BLUE, GREEN = "small red circle", "large blue square", "large green circle"
SCENE: Scene = (Shape(RED, 0, 15.0, 20.0), Shape(BLUE, 1, 49.0, 18.0), Shape(GREEN, 3, 48.0, 47.0))
"""Red and blue in the upper row, green below blue; red lies diagonally to green, and slightly below blue."""


@pytest.mark.parametrize(
    ("caption", "holds", "fails"),
    [
        ("a small red circle left of a large blue square", True, False),
        ("there is a large blue square right of a small red circle", True, False),
        ("a small red circle right of a large blue square", False, True),
        ("a large blue square above a large green circle", True, False),
        ("a large green circle above a large blue square", False, True),
        ("a small red circle left of a large green circle", False, False),  # so it lies, but the cells are diagonal
        ("a small red circle below a large blue square", False, False),  # two pixels lower, in the same row
        ("a small red circle left of a small red square", False, True),
        ("there is a small red circle and a large green circle", True, False),
        ("a small blue circle and a large red square", False, True),
        ("a small red circle and no large red square", True, False),
        ("a small red circle and no large blue square", False, True),
        ("a large red square and no small red circle", False, True),
        ("there are two circles and one square", True, False),
        ("one square and two circles", True, False),
        ("there is one circle and one square", False, True),
        ("two circles and one diamond", False, True),
    ],
)
def test_statements_about_one_scene(caption: str, holds: bool, fails: bool) -> None:
    statement = parse(caption)
    assert statement is not None
    assert (statement.holds(SCENE), statement.fails(SCENE)) == (holds, fails)
    assert caption in statement.captions


def test_captions_of_statements() -> None:
    assert Relation(RED, "above", BLUE).phrase == "a small red circle above a large blue square"
    assert Relation(RED, "above", BLUE).inverse.phrase == "a large blue square below a small red circle"
    assert Both(RED, BLUE).phrase == "a small red circle and a large blue square"
    assert Without(RED, BLUE).phrase == "a small red circle and no large blue square"
    assert Counts((1, "circle"), (3, "square")).captions[1] == "there is one circle and three squares"
    assert parse("a small circle red above a large blue square") is None


def test_drawing_is_where_coordinates_say() -> None:
    pixels = np.asarray(draw(SCENE)).astype(int)
    for shape in SCENE:
        covered = coverage(shape)
        y, x = np.nonzero(covered == 1)
        assert (x.mean(), y.mean()) == pytest.approx((shape.x - 0.5, shape.y - 0.5), abs=0.6)
        assert (pixels[covered == 1] == ImageColor.getrgb(shape.color)).all()
        assert covered.sum() == pytest.approx({RED: 133, GREEN: 452, BLUE: 288}[shape.kind], rel=0.1)
    outside = sum(coverage(shape) for shape in SCENE) == 0
    assert (pixels[outside] == 255).all()
    assert place({0: RED}, np.random.default_rng(1)) == place({0: RED}, np.random.default_rng(1))


@pytest.mark.parametrize("category", CATEGORIES)
def test_first_caption_is_true_and_the_others_are_false(category: str) -> None:
    cases = list(draw_cases(category, 40, seed=3))
    assert len({case.captions for case in cases}) >= 30
    for case in cases:
        for scene in case.scenes:
            assert len({shape.cell for shape in scene}) == len(scene)
        for number, scene in enumerate(case.scenes):
            captions = (case.captions[number], *(text for text in case.captions if text != case.captions[number]))
            true, *foils = map(parse, captions)
            assert true is not None and true.holds(scene), case
            assert all(foil is None or foil.fails(scene) for foil in foils), case


def cases_of(category: str, number: int = 40) -> list[SceneCase]:
    return list(draw_cases(category, number, seed=1))


def test_pairs_of_test_captions_are_of_the_test_split() -> None:
    for category in set(CATEGORIES) - {"count/replace", "order/shuffle"}:
        for statement in (parse(text) for case in cases_of(category, 20) for text in case.captions):
            assert statement is not None and split_of(*pair_of(statement)) == "test", category


def pair_of(statement: object) -> tuple[str, str]:
    match statement:
        case Relation(first, _, second) | Both(first, second) | Without(first, second):
            return first, second
    raise AssertionError(statement)


def test_swapped_captions_have_the_same_words() -> None:
    for category in ("attribute/swap", "relation/swap", "negation/swap", "order/shuffle", "order/pair"):
        for case in cases_of(category):
            assert len({tuple(sorted(text.split())) for text in case.captions}) == 1
            assert len(set(case.captions)) == len(case.captions)


def test_inserted_negation_is_false_in_one_half() -> None:
    true = Counter(" no " in case.captions[0] for case in cases_of("negation/insert", 200))
    assert 75 < true[True] < 125
    assert all((" no " in case.captions[0]) != (" no " in case.captions[1]) for case in cases_of("negation/insert"))


def test_a_shuffle_that_is_true_is_no_foil() -> None:
    scene: Scene = (Shape("small red circle", 0, 15, 16), Shape("small red square", 1, 49, 16))
    for seed in range(200):
        for text in shuffles("a small red square right of a small red circle", scene, np.random.default_rng(seed)):
            assert text not in Relation("small red square", "right of", "small red circle").captions
            statement = parse(text)
            assert statement is None or statement.fails(scene)


@pytest.mark.parametrize("split", SPLITS)
def test_captions_of_samples_are_true_and_their_pairs_of_one_split(split: str) -> None:
    kinds = Counter[str]()
    for sample in scene_samples(split, 40, seed=5):
        shapes = sample.meta["shapes"]
        assert isinstance(shapes, list)
        scene = tuple(Shape(**shape) for shape in shapes)
        assert png(scene) == sample.image
        for text in sample.texts:
            statement = parse(text)
            assert statement is not None and statement.holds(scene), (text, scene)
            kinds[type(statement).__name__] += 1
            if not isinstance(statement, Counts) and len(set(pair_of(statement))) == 2:
                assert split_of(*pair_of(statement)) == split
        assert set(" ".join(sample.texts).split()) <= set(WORDS)
    assert set(kinds) == {"Relation", "Both", "Without", "Counts"}


def test_equal_seeds_give_equal_bytes() -> None:
    def digest(seed: int) -> str:
        content = [(sample.image, sample.texts) for sample in scene_samples("train", 5, seed)]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    assert digest(1) == digest(1) != digest(2)
    assert cases_of("relation/swap", 5) == cases_of("relation/swap", 9)[:5]
