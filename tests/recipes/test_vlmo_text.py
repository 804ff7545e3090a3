"""The text stage trains and freezes what the official code does: see tests/golden/vlmo/facts.json for its origin."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from official_vlmo import to_official_names

from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Recipe
from dualfuse.recipes import vlmo, vlmo_text
from dualfuse.training.freeze import freeze

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vlmo" / "text_stage.json").read_text())
SIZE = dict(
    width=48, depth=4, heads=4, vl_expert_start=4, patch_size=8, image_size=(32, 32), vocab_size=101, text_length=20
)


def sets(recipe: Recipe, model: VLMoConfig) -> tuple[set[str], set[str]]:
    """Trained and frozen parameters, by the names of the official code."""
    task = recipe.task.build(model.build())
    freeze(task, recipe.train_only)
    found: tuple[set[str], set[str]] = set(), set()
    for name, parameter in task.named_parameters():
        official = to_official_names({name: parameter})
        assert official.unknown == ()
        found[not parameter.requires_grad].update(official.tensors)
    return found


def test_what_the_base_size_trains() -> None:
    trained, frozen = sets(vlmo_text.BASE_TEXT, VLMoConfig(**SIZE))
    # text positions beside relative ones never have a gradient there, and do not exist here
    assert trained == set(GOLDEN["trainable"]) - set(GOLDEN["trainable_without_gradient"])
    assert frozen == set(GOLDEN["frozen"])


def test_what_absolute_positions_change() -> None:
    trained, frozen = sets(vlmo_text.BASE_PLUS_TEXT, VLMoConfig(**SIZE, positions="absolute"))
    assert trained == set(GOLDEN["trainable"]) - {"relative_position_bias_table"}
    assert frozen == set(GOLDEN["frozen"]) | {"transformer.pos_embed"}


@pytest.mark.parametrize("size", ["base", "base-plus", "large", "nano"])
def test_recipes(size: str) -> None:
    """Every pattern matches, no expert sees both modalities, and positions are as long as the rows."""
    recipe = vlmo_text.RECIPES[f"vlmo-{size}-text"][1]
    with torch.device("meta"):
        task = recipe.build()
    freeze(task, recipe.train_only)
    assert not any("experts.vl" in name for name, _ in task.named_parameters())
    assert recipe.model.text_length == recipe.data.text_length


def test_published_numbers() -> None:
    base = vlmo_text.BASE_TEXT
    assert (base.data.text_length, base.data.batch_size, base.run.steps) == (196, 1024, 200_000)
    assert (base.optim.lr, base.optim.warmup, base.optim.betas, base.optim.weight_decay) == (
        2e-4,
        2500,
        (0.9, 0.98),
        0.01,
    )
    assert base.task.mlm_probability == 0.15 and base.model.drop_path == 0.1
    assert base.model == replace(vlmo.BASE, vl_expert_start=12)
