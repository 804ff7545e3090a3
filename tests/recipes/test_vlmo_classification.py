"""Recipes of classes: whole, with the numbers of BEiT, and a small one that is trained and judged end to end."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import shards, weights

from dualfuse import hub, recipes
from dualfuse.cli.train import override
from dualfuse.config import from_json, to_json
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.recipe import Recipe
from dualfuse.recipes import vlmo_classification
from dualfuse.tasks.finetune.image_classification import ImageClassification
from dualfuse.training.loop import train
from dualfuse.training.run_log import read_log

PLACES = {name: recipe for name, (_, recipe) in vlmo_classification.RECIPES.items()}


@pytest.mark.parametrize("name", PLACES)
def test_recipe_is_complete(name: str) -> None:
    recipe = PLACES[name]
    assert recipes.find_recipe(name) == (recipe,)
    assert from_json(to_json(recipe)) == recipe
    flags = [
        "--task.num-classes",
        "5",
        "--task.mixup.cutmix-alpha",
        "0.5",
        "--optim.layer-decay",
        "0.6",
        "--data.preprocess.crop-fraction",
        "1",
    ]
    (chosen,) = override((recipe,), flags, prog="train")
    assert (chosen.task.num_classes, chosen.task.mixup.cutmix_alpha, chosen.optim.layer_decay) == (5, 0.5, 0.6)
    assert recipe.model.image_size == recipe.data.image_size
    with torch.device("meta"):
        task = chosen.build()
    assert isinstance(task, ImageClassification) and task.head.out_features == 5


def test_numbers_of_beit() -> None:
    """Epochs, warm-up, rate, decay of layers and drop path, looked up in its README."""

    def said(recipe: Recipe, images: int) -> tuple[float, ...]:
        epoch = images / recipe.data.batch_size
        numbers = recipe.run.steps / epoch, recipe.optim.warmup * recipe.run.steps / epoch
        return *map(round, numbers), recipe.optim.lr, recipe.optim.layer_decay, recipe.model.drop_path

    assert said(PLACES["imagenet22k-vlmo-base"], 14_197_122) == (90, 5, 3e-3, 0.65, 0.2)
    assert said(PLACES["imagenet22k-vlmo-large"], 14_197_122) == (90, 5, 2e-3, 0.75, 0.2)
    assert said(PLACES["imagenet-vlmo-base"], 1_281_167) == (30, 5, 2e-5, 0.85, 0.1)
    assert said(PLACES["imagenet-vlmo-large"], 1_281_167) == (30, 5, 2e-5, 0.9, 0.4)
    assert said(PLACES["imagenet-vlmo-base-direct"], 1_281_167) == (100, 20, 4e-3, 0.65, 0.1)
    assert said(PLACES["imagenet-vlmo-large-direct"], 1_281_167) == (50, 5, 1e-3, 0.75, 0.2)


@pytest.mark.parametrize(
    ("name", "side"),
    [("imagenet-vlmo-base-384", 384), ("imagenet-vlmo-large-384", 384), ("imagenet-vlmo-large-512", 512)],
)
def test_sizes_of_beit(name: str, side: int) -> None:
    """At 384 px and more the whole middle is evaluated; all else is that of 224 px (datasets.py, build_transform)."""
    recipe, plain = PLACES[name], PLACES[name[:-4]]
    assert recipe.data.image_size == (side, side) and recipe.data.preprocess.crop_fraction == 1.0
    assert (recipe.task, recipe.optim, recipe.run) == (plain.task, plain.optim, plain.run)


def coloured(number: int) -> Sample:
    """One of six colours, a little noisy; the label is its name."""
    rng, colours = np.random.default_rng(number), np.concatenate([np.eye(3), 1 - np.eye(3)])
    pixels = 255 * np.clip(colours[number % 6] * 0.8 + rng.normal(0, 0.05, (32, 32, 3)), 0, 1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return Sample(f"{number:03d}", file.getvalue(), meta={"label": f"colour {number % 6}"})


@pytest.fixture
def small(tmp_path: Path) -> Recipe:
    """The recipe of a laptop, smaller still."""
    recipe = PLACES["vlmo-nano-classes"]
    train_set = shards(tmp_path / "data", [coloured(n) for n in range(48)])
    return replace(
        recipe,
        model=replace(recipe.model, width=32, depth=2, vl_expert_start=1, image_size=(32, 32)),
        task=replace(recipe.task, labels=tuple(f"colour {n}" for n in range(6)), random_erasing=0.2),
        data=replace(
            recipe.data,
            image_size=(32, 32),
            train=(train_set,),
            validation=shards(tmp_path / "data", [coloured(n) for n in range(100, 112)], "val"),
            batch_size=24,
            num_workers=0,
        ),
        optim=replace(recipe.optim, warmup=5, lr=5e-3),
        run=replace(recipe.run, steps=40, save_every=20, log_every=20, keep_last=9),
    )


@pytest.mark.slow
def test_small_recipe_learns_classes(small: Recipe, tmp_path: Path) -> None:
    train([small], tmp_path / "run")
    last = read_log(tmp_path / "run")[-1]
    assert last["validation/accuracy"] > 0.9 and last["validation/accuracy/top5"] == 1.0
    loaded = hub.load(tmp_path / "run" / "final")
    found = loaded.task.evaluate(
        EvaluationData(Shards.open(small.data.validation), loaded.processor), Plan(batch_size=5, num_workers=0)
    )
    assert (
        found.size == "12 questions, 12 of them labelled" and found.metrics["accuracy"] == last["validation/accuracy"]
    )
    assert found.predictions[0].answer.startswith("colour ")


def test_resume_is_bitwise_with_mixup(small: Recipe, tmp_path: Path) -> None:
    short = replace(small, run=replace(small.run, steps=6, save_every=3, log_every=3))
    train([short], tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "final")
    newest = max((tmp_path / "again" / "checkpoints").iterdir())
    shutil.rmtree(newest) if newest.is_dir() else newest.unlink()
    train([short], tmp_path / "again")
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "again")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_head_of_another_size_is_new(small: Recipe, tmp_path: Path) -> None:
    """A head of another size is new; the norm of the mean goes on."""
    short = replace(small, run=replace(small.run, steps=2), data=replace(small.data, validation=""))
    train([short], tmp_path / "first")
    labels = tuple(f"colour {n}" for n in range(9))
    after = replace(short, task=replace(short.task, labels=labels), start_from=str(tmp_path / "first" / "final"))
    train([replace(after, run=replace(after.run, steps=1), train_only=("head.*",))], tmp_path / "second")
    before, now = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert {
        name for name in now if not (now[name].shape == before[name].shape and torch.equal(now[name], before[name]))
    } == {"head.weight", "head.bias"}
