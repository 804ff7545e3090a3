"""The published recipes of fine-tuning: whole, with flags, and with numbers that can be looked up."""

from __future__ import annotations

import inspect
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualfuse import recipes
from dualfuse.cli.train import override
from dualfuse.config import from_json, to_json
from dualfuse.data.sampler import MixtureSampler
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Recipe
from dualfuse.recipes import bridgetower_vqa, finetune_bridgetower, finetune_vlmo
from dualfuse.recipes.finetune_bridgetower import ITC_ITM
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.ranking import RankingConfig
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

PLACES = {
    f"{module.__name__}:{name}": make()
    for module in (finetune_bridgetower, bridgetower_vqa)
    for name, make in inspect.getmembers(module, inspect.isfunction)
    if make.__module__ == module.__name__ and not name.startswith("_")
} | {name: recipe for name, (_, recipe) in finetune_vlmo.RECIPES.items()}
"""Every recipe of these files."""


def test_all_recipes_are_listed() -> None:
    assert len(PLACES) == 16 + 12 + 6


@pytest.mark.parametrize("place", PLACES)
def test_recipe_is_complete(place: str) -> None:
    recipe = PLACES[place]
    assert recipes.find_recipe(place) == (recipe,)
    assert from_json(to_json(recipe)) == recipe
    model, data = recipe.model, recipe.data
    assert isinstance(model, VLMoConfig | BridgeTowerConfig)
    made_for = model.image_size if isinstance(model, VLMoConfig) else model.image.image_size
    assert made_for == data.image_size
    assert model.image_slots == (2 if isinstance(recipe.task, NLVR2Config) else 1)
    assert data.batch_size % (recipe.run.micro_batch or 1) == 0
    ratio = (
        recipe.run.steps * data.batch_size
    )  # samples that are seen: of every task more than 2 and less than 20 millions
    assert 8e5 < ratio < 2e7
    with torch.device("meta"):
        task = recipe.task.build(model.build())
    assert sum(parameter.numel() for parameter in task.parameters()) > 1e8


def test_flags_of_questions(tmp_path: Path) -> None:
    answers = tmp_path / "answers.txt"
    answers.write_text("yes\nno\n", encoding="utf-8")
    flags = ["--task.answers", str(answers), "--optim.lr", "1e-4", "--data.train", "x.tar"]
    (chosen,) = override(recipes.find_recipe("vqa-vlmo-base"), flags, prog="train")
    assert isinstance(chosen.task, VQAConfig)
    assert (chosen.task.answers, chosen.optim.lr, chosen.optim.head_lr_mult) == (("yes", "no"), 1e-4, 20.0)


def test_numbers_of_the_papers() -> None:
    """Epochs, looked up in the tables of the official configurations."""

    def epochs(recipe: Recipe, samples: int) -> float:
        return recipe.run.steps * recipe.data.batch_size / samples

    assert epochs(PLACES["vqa-vlmo-base"], 640_000) == pytest.approx(10, abs=0.1)
    assert epochs(bridgetower_vqa.vqa_large_genome(), 645_381 + 931_866) == pytest.approx(10, abs=0.1)
    assert epochs(PLACES["nlvr2-vlmo-large"], 86_373) == pytest.approx(10, abs=0.1)
    assert epochs(PLACES["coco-vlmo-base"], 566_747) == pytest.approx(16, abs=0.5)
    assert epochs(PLACES["flickr30k-vlmo-base"], 145_000) == pytest.approx(32, abs=0.5)
    assert epochs(finetune_bridgetower.vqa_large(), 645_381) == pytest.approx(10, abs=0.1)
    assert epochs(finetune_bridgetower.meter_nlvr2_base(), 86_373) == pytest.approx(10, abs=0.1)
    assert epochs(finetune_bridgetower.meter_coco_base(), 566_747) == pytest.approx(10, abs=0.1)
    assert epochs(finetune_bridgetower.flickr30k_base_ranking(), 145_000) == pytest.approx(20, abs=0.3)
    ranks = finetune_bridgetower.meter_flickr30k_base().task
    assert [PLACES[f"{size}-vlmo-base"].run.eval_every for size in ("coco", "flickr30k")] == [184, 47]
    assert isinstance(ranks, RankingConfig) and (ranks.num_negatives, ranks.itm_weight) == (15, 1.0)
    both = finetune_bridgetower.coco_base().task
    assert isinstance(both, PairsConfig) and both.itc_weight == both.itm_weight == 1.0 and both.mlm_weight == 0.0


@pytest.mark.parametrize("place", PLACES)
def test_best_model_is_chosen_as_published(place: str) -> None:
    """By recall where images are retrieved, re-ranked if ITM and ITC are trained; else by accuracy, or the last one."""
    recipe = PLACES[place]
    recalled = recipe.name in ("coco", "flickr30k")
    last = recipe.name == "vqa" and isinstance(recipe.model, BridgeTowerConfig)
    reranks = {"coco": 256, "flickr30k": 128}[recipe.name] if recalled and recipe.task == ITC_ITM else 0
    assert recipe.run.eval_rerank == reranks
    recalls = "*/reranked/R@*" if reranks else "*/R@*"
    assert recipe.run.best == (recalls if recalled else "" if last else "accuracy")
    assert (recipe.run.eval_every > 0 or recipe.run.eval_epochs == 1) == bool(recipe.run.best)
    assert recipe.run.eval_every < recipe.run.steps / 2


def test_numbers_without_pretraining() -> None:
    """Of ftfs_base_vqa.sh and ftfs_large_vqa.sh."""
    base, large = bridgetower_vqa.vqa_base_ftfs(), bridgetower_vqa.vqa_large_ftfs()
    assert (base.optim.lr, large.optim.lr, large.data.image_size) == (2e-5, 1e-5, (574, 574))
    for each in (base, large):
        optim, task = each.optim, each.task
        assert (optim.warmup, optim.weight_decay, optim.head_lr_mult, optim.fusion_lr_mult) == (0.1, 0.01, 50, 5)
        assert isinstance(task, VQAConfig) and task.hidden_scale == 1.0
        assert each.data.preprocess.resize_mode == "crop" and each.data.batch_size == 512


def test_published_pairs_are_sampled_by_caption() -> None:
    """By the mixture of BridgeTower's paper: Visual Genome is half of the pairs."""
    last = {name: recipes.find_recipe(name)[-1] for name in recipes.NAMES}
    names = [name for name, recipe in last.items() if recipe.data.sample_by == "caption"]
    pre_trained = [name for name in names if last[name].name in ("pairs", "itc")]
    assert {name.split("-")[0] for name in pre_trained} == {"vlmo", "bridgetower", "meter"}
    assert not any("nano" in name or "small" in name for name in names)
    assert {"coco-bridgetower-base", "coco-meter-base", "flickr30k-bridgetower-base-ranking"} < set(names)
    captions = (567_000, 4_800_000, 860_000, 2_900_000)
    draws = [draw for step in range(3) for draw in MixtureSampler(captions, 4096, 1).draws(step)]
    shares = np.bincount([draw.source for draw in draws]) / len(draws)
    np.testing.assert_allclose(shares, (0.062, 0.526, 0.094, 0.318), atol=0.02)


@pytest.mark.parametrize("place", [place for place in PLACES if "meter" in place])
def test_meter_crops_training_images_as_in_evaluation(place: str) -> None:
    """Red rises from left to right over 640 pixels; the crop shows the middle half, a squashed image would show all."""
    transform = PLACES[place].data.image_transform
    assert transform.augment is not None
    ramp = np.zeros((320, 640, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 640)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    plain = replace(transform, size=(96, 96), augment=replace(transform.augment, rand_augment=False))
    trained, evaluated = (
        each(file.getvalue(), np.random.default_rng(0)) for each in (plain, replace(plain, augment=None))
    )
    assert torch.equal(trained, evaluated)
    red = trained[0] * plain.preprocess.std[0] + plain.preprocess.mean[0]
    assert (255 * red.min()).item() == pytest.approx(64, abs=2) and (255 * red.max()).item() == pytest.approx(
        191, abs=2
    )
