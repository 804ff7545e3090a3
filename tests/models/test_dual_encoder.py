"""A dual encoder: what it embeds, and that everything that needs fusion refuses with the way to add it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import MODEL, clip_recipe, samples
from torch.testing import assert_close

from dualfuse import hub
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.inference.explain import explain
from dualfuse.inference.predict import predict
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.dual_encoder import DualEncoderConfig
from dualfuse.models.towers.siglip import SiglipTextConfig, SiglipViTConfig
from dualfuse.recipe import Recipe
from dualfuse.tasks.finetune.ranking import RankingConfig
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.testing import check_model
from dualfuse.training import loop

SIGLIP = DualEncoderConfig(
    SiglipViTConfig(width=32, depth=1, heads=2, feed_forward=32, patch_size=8, image_size=(32, 32)),
    SiglipTextConfig(
        width=16,
        depth=2,
        heads=2,
        feed_forward=32,
        vocab_size=MODEL.vocab_size,
        text_length=12,
        projection_width=32,
        pad_id=0,
    ),
    init_std=0.2,
)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return clip_recipe(tmp_path)


def sigmoid(recipe: Recipe) -> Recipe:
    head = ITCHeadConfig(projection="none", loss="sigmoid")
    return replace(recipe, model=SIGLIP, task=replace(recipe.task, itc_head=head))


def test_it_keeps_the_contract(recipe: Recipe) -> None:
    check_model(recipe.model, text_length=12)
    check_model(SIGLIP, text_length=12)


@pytest.mark.parametrize("change", [lambda recipe: recipe, sigmoid], ids=["softmax", "sigmoid"])
def test_itc_trains_without_other_heads(change, recipe: Recipe, tmp_path: Path) -> None:
    recipe = change(recipe)
    loop.train([recipe], tmp_path / "run")
    model = hub.load(tmp_path / "run" / "final")
    assert not [name for name in model.task.state_dict() if name.startswith(("itm_head", "mlm_head"))]
    before = recipe.build().state_dict()
    unchanged = [name for name, tensor in model.task.state_dict().items() if torch.equal(tensor, before[name])]
    assert unchanged == []


def test_tasks_that_fuse_refuse_it(recipe: Recipe) -> None:
    model = recipe.model.build()
    for config in (PairsConfig(), replace(recipe.task, mlm_weight=1.0), RankingConfig(), VQAConfig(answers=("a", "b"))):
        with pytest.raises(DualfuseError, match=r"no fusion encoder.* dualfuse train fuse --start-from MODEL"):
            config.build(model)


def test_matching_and_explaining_refuse_it(recipe: Recipe) -> None:
    model = hub.LoadedModel(recipe.build().eval(), recipe.data.processor(), recipe)
    image = samples(1)[0].image
    assert not model.task.can_match and predict(model, image, "a cat").match is None
    with pytest.raises(DualfuseError, match="dualfuse train fuse --start-from"):
        explain(model, image, "a cat")
    with pytest.raises(DualfuseError, match="dualfuse train fuse --start-from"):
        predict(model, image, "a [MASK]")
    tokens = model.task.model.embed_image(torch.randn(2, 3, 32, 32))
    with pytest.raises(DualfuseError, match="dualfuse train fuse --start-from"):
        model.task.match_logit(tokens, tokens)


def test_a_sample_is_read_without_a_mask_token(recipe: Recipe) -> None:
    example = recipe.task.read(
        Sample("0", samples(1)[0].image, ("a cat",)), recipe.data.processor(), np.random.default_rng(0)
    )
    assert_close(torch.from_numpy(example["masked_ids"]), torch.from_numpy(example["ids"]))
