"""Edits of captions against examples that were worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dualfuse.data.text.edits import EDIT_KINDS, Caption, EditKind, false_edits, same_meaning
from dualfuse.data.text.word_classes import NUMBERS


def all_edits(caption: str, kind: EditKind, *captions: str) -> set[str]:
    """Return every edit of a kind; words are drawn, so this is tried with many seeds."""
    seeds = (np.random.default_rng(seed) for seed in range(40))
    return {edit for rng in seeds for edit in false_edits(caption, (caption, *captions), rng, 9, (kind,))}


@pytest.mark.parametrize(
    ("kind", "caption", "expected"),
    [
        ("relation", "a small red circle left of a blue square", {"a small red circle right of a blue square"}),
        ("relation", "The cat is in front of the car.", {"The cat is behind the car."}),
        ("order", "there is a red circle above a blue square", {"there is a blue square above a red circle"}),
        ("order", "A dog sitting behind a car", {"A car sitting behind a dog"}),
        ("order", "A man riding a horse.", {"A horse riding a man."}),
        ("negation", "a dog with a ball", {"a dog without a ball", "no dog with a ball"}),
        ("negation", "no dog and a cat", {"a dog and a cat", "no dog and no cat"}),
        ("negation", "The door is open", {"The door is not open"}),
        ("negation", "The door is not open", {"The door is open"}),
        ("adjective", "a large dog and a small cat", {"a small dog and a large cat"}),
        ("adjective", "an open door", {"a closed door"}),
        ("relation", "horse", set()),
        ("color", "horse", set()),
    ],
)
def test_false_edits_are_those_worked_by_hand(kind: EditKind, caption: str, expected: set[str]) -> None:
    found = all_edits(caption, kind)
    # words of a class are also replaced where they are not exchanged
    assert found >= expected if kind == "adjective" else found == expected


def test_colors_numbers_and_nouns_are_exchanged_or_replaced_by_their_own_class() -> None:
    colors = all_edits("a red car behind a blue bus", "color")
    assert {"a blue car behind a red bus", "an orange car behind a blue bus"} <= colors
    assert all_edits("a red car and a blue car", "color").isdisjoint({"a blue car and a red car"})  # which is as true
    assert not {edit for edit in colors if "a orange" in edit}
    assert {"three dogs", "ten dogs"} <= all_edits("two dogs", "number") <= {f"{number} dogs" for number in NUMBERS}
    assert all(
        (edit.startswith("two ") and edit.endswith("s")) or "sheep" in edit for edit in all_edits("two cats", "noun")
    )


def test_an_edit_is_not_what_another_caption_says_in_any_way() -> None:
    caption = "a red circle above a blue square"
    assert all_edits(caption, "order", "a blue square above a red circle") == set()
    assert all_edits(caption, "order", "There is a red circle below a blue square.") == set()  # from the other end
    assert all_edits(caption, "relation", "a big blue square above a red circle") != set()
    greens = all_edits("a red circle", "color", "something green")
    assert not {edit for edit in greens if "green" in edit}
    assert "a grey cat" not in all_edits("a gray cat", "color")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red cup above a blue box", {"a blue box below a red cup", "there is a red cup above a blue box"}),
        ("no dog and a cat", {"a cat and no dog"}),
        ("The large dog is next to the sofa", None),
        ("a dog and a cat above a tree", {"a cat and a dog above a tree", "there is a dog and a cat above a tree"}),
        (
            "a man near a tree in a park",
            {"there is a man near a tree in a park"},
        ),  # the tree is in the park, not the man
        ("no cup above a box", set()),
        ("horse", set()),
    ],
)
def test_edits_with_the_same_meaning(caption: str, expected: set[str] | None) -> None:
    found = {same_meaning(caption, np.random.default_rng(seed)) for seed in range(40)} - {caption}
    if expected is None:
        expected = {
            "The big dog is next to the sofa",
            "The large dog is beside the sofa",
            "The large dog is next to the couch",
            "The sofa is next to the large dog",
        }
    assert found == expected


def test_a_caption_is_its_parts_and_edits_depend_on_the_seed_alone() -> None:
    for text in ("", " A man's hat,  (red)\n", "日本 l'été -- 3", "a" * 5000, "a red car " * 100):
        assert Caption.parse(text).text == text
        assert false_edits(text, (), np.random.default_rng(0), 3) == false_edits(text, (), np.random.default_rng(0), 3)
    assert false_edits("a red car " * 100, (), np.random.default_rng(0), 3) == ()
    many = false_edits("a large red car left of two dogs", (), np.random.default_rng(1), 50)
    assert len(set(many)) == len(many) > len(EDIT_KINDS) - 1
