"""Recipes of published runs that differ from another one in few values: they build, and differ in these alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dualfuse import recipes
from dualfuse.config import from_json, to_json

VARIANTS = {
    "bridgetower-base-pairs-itc-random": ("bridgetower-base-pairs", {"task"}),
    "bridgetower-base-pairs-itc": ("bridgetower-base-pairs", {"task"}),
    "meter-base-pairs-224": ("meter-base-pairs", {"model", "data"}),
    "vlmo-base-text-500k": ("vlmo-base-text", {"run"}),
    "nocaps-vlmo-base": ("caption-vlmo-base", {"optim"}),
    "nocaps-vlmo-large": ("caption-vlmo-large", set()),
}
"""A recipe, the one it is made from, and the parts that differ."""


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str) -> None:
    [made], [base] = recipes.find_recipe(name), recipes.find_recipe(VARIANTS[name][0])
    parts = ("model", "task", "data", "optim", "run")
    assert {part for part in parts if getattr(made, part) != getattr(base, part)} == VARIANTS[name][1]
    assert from_json(to_json(made)) == made
    assert sum(parameter.numel() for parameter in made.build_on_meta().parameters()) > 1e8


def test_negatives_with_itc() -> None:
    """Random ones of the same set for half of the pairs, as without ITC; hard ones for every pair."""
    [plain], [random], [hard] = (
        recipes.find_recipe(f"bridgetower-base-pairs{end}") for end in ("", "-itc-random", "-itc")
    )
    assert random.task == replace(plain.task, itc_weight=1.0)
    assert (hard.task.negatives, hard.task.negative_hardness, hard.task.negatives_per_pair) == ("local", 1.0, 2)
    [text] = recipes.find_recipe("vlmo-base-text-500k")
    assert (text.run.steps, text.optim.warmup) == (500_000, 2500)


def test_names_are_unique_and_have_summaries() -> None:
    assert len(set(recipes.NAMES)) == len(recipes.NAMES)
    assert all(len(recipes.summary(name)) > 20 for name in recipes.NAMES)
