"""Recipes of answers on a laptop, and what their benchmark makes of images with names."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tiny import png_image

from dualfuse import recipes
from dualfuse.config import from_json, to_json
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipes import small_finetune
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config

BENCH = Path(__file__).parents[2] / "bench"


def bench(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look
    spec.loader.exec_module(module)
    return module


baselines, labels = bench("answer_baselines"), bench("openpics_labels")
RNG = np.random.default_rng


def images(number: int, first: int = 0) -> list[Sample]:
    """Three of each name, each from another source; kinds and keywords by the name."""
    return [
        Sample(
            f"{name}-{source}",
            png_image(3 * name + number),
            (f"Thing, {name}!",),
            {
                "source": source,
                "kind": "even" if name % 2 == 0 else "odd",
                "keywords": [f"k{name % 3}", f"only {name}"],
            },
        )
        for name in range(first, first + number)
        for number, source in enumerate(("one", "two", "three"))
    ]


@pytest.mark.parametrize("name", small_finetune.RECIPES)
def test_recipe_is_complete(name: str) -> None:
    (recipe,) = recipes.find_recipe(name)
    assert from_json(to_json(recipe)) == recipe
    model = recipe.model
    made_for = model.image_size if isinstance(model, VLMoConfig) else model.image.image_size
    assert made_for == recipe.data.image_size
    assert model.image_slots == (2 if isinstance(recipe.task, NLVR2Config) else 1)
    assert recipes.summary(name)


@pytest.mark.parametrize("rng", [None, 3])
def test_negatives_have_another_name_and_equal_frequency(rng: int | None) -> None:
    samples = images(10)
    pairs = list(labels.wrong_ones(samples, None if rng is None else RNG(rng)))
    assert Counter(image.key for image, _ in pairs) == Counter(sample.key for sample in samples)
    assert Counter(other.key for _, other in pairs) == Counter(sample.key for sample in samples)
    assert all(labels.name_of(image) != labels.name_of(other) for image, other in pairs)
    if rng is None:  # neighbours: of 30, all but the last ones of a kind find one of their kind
        assert sum(image.meta["kind"] == other.meta["kind"] for image, other in pairs) >= 24


def test_texts_that_fit_and_texts_that_differ(tmp_path: Path) -> None:
    parts = {"train": images(12), "val": images(4, 12), "test": images(4, 16)}
    with labels.write_fits(parts, tmp_path / "fits", RNG(0)).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["split"] for row in rows) == {"train": 72, "val": 24, "test": 24, "test_near": 24}
    true = {f"{sample.key}.jpg": sample.texts[0] for part in parts.values() for sample in part}
    for row in rows:
        assert (row["verdict"] == "fits") == (true[row["photo"]] == row["says"])
        assert (tmp_path / "fits" / row["photo"]).is_file()
    for column in ("photo", "says"):  # by itself it tells nothing
        said = {verdict: Counter(row[column] for row in rows if row["verdict"] == verdict) for verdict in labels.FITS}
        assert said["fits"] == said["differs"]


def test_two_images_of_one_thing(tmp_path: Path) -> None:
    samples = images(60)
    seen = frozenset(labels.name_of(sample) for sample in samples[:60])
    numbers = labels.write_same(samples, seen, tmp_path, RNG(0))
    of = {split: list(Shards.open(tmp_path / f"{split}-*.tar")) for split in numbers}
    assert set(of) == {"train", "val", "test", "test_near"}
    thing = {sample.image: labels.name_of(sample) for sample in samples}
    names = {
        split: {thing[image] for one in part for image in (one.image, *one.other_images)} for split, part in of.items()
    }
    assert names["test"] == names["test_near"] and seen <= names["train"]
    assert not names["train"] & names["test"] and not names["train"] & names["val"] and not names["val"] & names["test"]
    for split, part in of.items():
        assert len(part) == numbers[split]
        for sample in part:
            (other,) = sample.other_images
            assert (thing[sample.image] == thing[other]) == (sample.meta["label"] == "True")
        for label in ("True", "False"):
            shown = [image for one in part if one.meta["label"] == label for image in (one.image, *one.other_images)]
            assert Counter(shown) == Counter(
                image for one in part if one.meta["label"] != label for image in (one.image, *one.other_images)
            )


def test_baselines() -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[1, 7, 9], [1, 8, 0]]).repeat(200, 1)
    colours = torch.randn(400, 1, 48)
    answers = torch.where(ids[:, 1] == 7, (colours[:, 0, 3] > 0).long(), (colours[:, 0, 5] < 0).long())
    kinds = tuple("seven" if word == 7 else "eight" for word in ids[:, 1].tolist())
    part = baselines.Known(ids, colours, answers, kinds)
    (said,) = baselines.linear(part, part, [part], classes=2, seed=1)
    found = baselines.scores(said, part)
    assert found["accuracy"] > 85 and min(found["accuracy/seven"], found["accuracy/eight"]) > 80
    always = baselines.Known(ids, colours, torch.where(ids[:, 1] == 7, 1, 0), kinds)
    assert baselines.scores(baselines.most_frequent(always, always), always)["accuracy"] == 100
    cosines = torch.tensor([0.9, 0.1, 0.4, 0.3])
    few = baselines.Known(ids[:4], colours[:4], torch.tensor([1, 0, 1, 0]), kinds[:4])
    (said,) = baselines.threshold(few, [cosines, torch.tensor([0.35, 0.4, 0.5])])
    assert said.tolist() == [0, 1, 1]
