"""Pictures alone, told apart: what is read, what is learnt, and what stands for a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from tiny import BRIDGETOWER, MODEL, picture, tokenizer
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from dualfuse.config import from_json, to_json
from dualfuse.data.images import Augment, ImageTransform
from dualfuse.data.mixing import Mix
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text import Text
from dualfuse.engine.start import freeze
from dualfuse.models.base import ModelConfig
from dualfuse.models.vlmo import Initial, VLMo
from dualfuse.tasks.answered import Asked, TopAccuracy
from dualfuse.tasks.base import Prep
from dualfuse.tasks.image_classes import ImageClassesConfig

MODELS: dict[str, ModelConfig] = {
    "vlmo": replace(MODEL, drop_path=0.0, initial=Initial(std=0.15, layer_scale=0.0)),
    "bridgetower": replace(BRIDGETOWER, initial_std=0.15),
}
ANIMALS = ("cat", "dog", "fish")
CFG = ImageClassesConfig(labels=ANIMALS, head_scale=1.0)


@pytest.fixture(scope="module")
def prep(tmp_path_factory: pytest.TempPathFactory) -> Prep:
    return Prep(ImageTransform((32, 32)), Text(12, tokenizer(tmp_path_factory.mktemp("words"))))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sample(number: int = 0, **meta: object) -> Sample:
    return Sample(f"{number}", picture(number), meta={"label": ANIMALS[number % 3]} | meta)


def batch_of(cfg: ImageClassesConfig, prep: Prep, number: int = 6) -> Any:
    return cfg.collate([cfg.read(sample(n), prep, rng(n)) for n in range(number)])


@pytest.mark.parametrize("features", ["patches", "first"])
@pytest.mark.parametrize("model", MODELS)
def test_learns_by_heart(model: str, features: Any, prep: Prep) -> None:
    torch.manual_seed(0)
    cfg = replace(CFG, features=features)
    task = cfg.build(MODELS[model].build())
    batch = batch_of(cfg, prep)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    while len(losses) < 80 and (not losses or losses[-1] > 0.2 * losses[0]):
        output = task(batch)
        losses.append(float(output.loss.detach()))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    task.eval()
    asked = cfg.collate([cfg.ask(sample(n), prep, rng()) for n in range(6)])
    shares = task.predict(asked)
    assert_close(shares.sum(1), torch.ones(6))
    assert [(ANIMALS[n],) for n in shares.argmax(1).tolist()] == [one.truth for one in asked["asked"]]


@torch.no_grad()
def test_the_mean_over_patches_by_hand(prep: Prep) -> None:
    """The class token is not in it, nor the norm of the model."""
    torch.manual_seed(0)
    task = CFG.build(MODELS["vlmo"].build()).eval()
    model, images = task.model, batch_of(CFG, prep)["image"]
    assert isinstance(model, VLMo)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    last: list[torch.Tensor] = []
    hook = model.blocks[-1].register_forward_hook(lambda *args: last.append(args[-1]))
    vector = model.average_patches(model.embed_image(images))
    hook.remove()
    assert last[0].shape == (6, 17, 32)
    assert_close(vector, torch.stack([last[0][:, n] for n in range(1, 17)]).mean(0))
    wanted = task.head(F.layer_norm(vector, (32,), eps=1e-6))
    assert_close(task.logits({"image": images}), wanted)
    every = model.states(model.embed_image(images), torch.arange(17).expand(6, -1))
    assert_close(model.norm(last[0]), every)  # what averages is what goes on elsewhere


def test_the_head_begins_small() -> None:
    torch.manual_seed(0)
    weights = ImageClassesConfig(classes=500).build(MODELS["vlmo"].build()).head.weight
    assert weights.std().item() == pytest.approx(0.02 * 0.001, rel=0.05)


@pytest.mark.parametrize(("label", "wanted"), [("dog", 1), (2, 2), (0, 0)])
def test_labels_by_name_and_number(label: object, wanted: int, prep: Prep) -> None:
    assert CFG.read(sample(label=label), prep, rng())["target"] == wanted
    assert CFG.ask(sample(label=label), prep, rng())["asked"] == Asked("0", "0", "", (ANIMALS[wanted],))


def test_labels_that_are_none(prep: Prep) -> None:
    with pytest.raises(BrokenSample, match=r"'cow'; the task knows cat, dog, fish, or"):
        CFG.ask(sample(label="cow"), prep, rng())
    with pytest.raises(BrokenSample, match=r"label is 'cow'; the task knows 0, 1, .* 19 and 980 more, or"):
        ImageClassesConfig().read(sample(label="cow"), prep, rng())
    with pytest.raises(BrokenSample, match='no "label"'):
        CFG.read(Sample("x", picture(0)), prep, rng())
    assert CFG.ask(Sample("x", picture(0)), prep, rng())["asked"].truth == ()


@pytest.mark.parametrize("changes", [{"classes": 1}, {"labels": ("a", "a")}, {"smoothing": 1.0}, {"erase": 2.0}])
def test_what_makes_no_task(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"different; give two|both are shares"):
        ImageClassesConfig(**changes)


def test_labels_are_a_file_on_the_command_line_and_travel_with_the_model(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("\n".join(ANIMALS), encoding="utf-8")
    cfg = tyro.cli(ImageClassesConfig, args=["--labels", str(file), "--mix.cut", "1.0"])
    assert cfg == ImageClassesConfig(labels=ANIMALS, mix=Mix(cut=1.0))
    assert from_json(to_json(cfg)) == cfg


def test_smoothing_and_mixing_against_the_formula(prep: Prep) -> None:
    """Shares of both classes, then a tenth of the target for all alike: a double loop."""
    torch.manual_seed(0)
    cfg = replace(CFG, smoothing=0.1, mix=Mix(fade=0.8, cut=1.0))
    task, batch = cfg.build(MODELS["vlmo"].build()), batch_of(cfg, prep, 4)
    found, given = [], []
    for seed in range(4):
        torch.manual_seed(seed)
        loss = task(batch).loss
        torch.manual_seed(seed)
        images, share = cfg.mix(batch["image"])
        logs = task.logits({"image": images}).log_softmax(1)
        wanted = torch.zeros(())
        for row in range(4):
            for number in range(3):
                own, other = (batch["target"][place] == number for place in (row, 3 - row))
                shares = share * own + (1 - share) * other
                wanted = wanted - (0.9 * shares + 0.1 / 3) * logs[row, number] / 4
        assert_close(loss, wanted)
        found.append(share)
        given.append(float(loss.detach()))
    assert len(set(found)) == len(set(given)) == 4
    task.eval()
    assert_close(task(batch).loss, F.cross_entropy(task.logits(batch), batch["target"], label_smoothing=0.1))


def test_erasing_is_for_augmented_pictures(prep: Prep) -> None:
    cfg, plain = replace(CFG, erase=1.0), prep.image(picture(0), rng())
    assert torch.equal(cfg.read(sample(), prep, rng())["image"], plain)
    augmented = Prep(ImageTransform((32, 32), Augment(crop=(1, 1), flip=0.0, rand_augment=False)), prep.text)
    erased = cfg.read(sample(), augmented, rng())["image"]
    assert 0.01 < (erased != plain).float().mean() < 0.4
    assert torch.equal(replace(cfg, erase=0.0).read(sample(), augmented, rng())["image"], plain)
    assert torch.equal(cfg.ask(sample(), augmented, rng())["image"], plain)


def test_a_linear_probe_leaves_the_model_alone(prep: Prep) -> None:
    task = CFG.build(MODELS["vlmo"].build())
    freeze(task, ("head.*",))
    task(batch_of(CFG, prep)).loss.backward()
    assert {name for name, parameter in task.named_parameters() if parameter.grad is not None} == {
        "head.weight",
        "head.bias",
    }


def test_top_five() -> None:
    metric = TopAccuracy()
    assert metric.result() == {}
    for truth in ("a", "b", "e", "f"):
        metric.add(Asked("", "", "", (truth,)), ("a", "b", "c", "d", "e", "f"))
    assert metric.result() == {"accuracy": 1 / 4, "accuracy/top5": 3 / 4}
