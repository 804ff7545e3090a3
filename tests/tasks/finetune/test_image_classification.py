"""Image classification: reading, training, and features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from tiny import BRIDGETOWER, MODEL, png_image, tokenizer
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from dualfuse.config import from_json, to_json
from dualfuse.data.image.mixup import Mixup
from dualfuse.data.image.transform import Augment, ImageTransform
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.metrics.accuracy import Question, TopAccuracy
from dualfuse.models.base import ModelConfig
from dualfuse.models.vlmo import InitConfig, VLMo
from dualfuse.tasks.finetune.image_classification import ImageClassificationConfig
from dualfuse.training.freeze import freeze

MODELS: dict[str, ModelConfig] = {
    "vlmo": replace(MODEL, drop_path=0.0, init=InitConfig(std=0.15, layer_scale=0.0)),
    "bridgetower": replace(BRIDGETOWER, init_std=0.15),
}
ANIMALS = ("cat", "dog", "fish")
CFG = ImageClassificationConfig(labels=ANIMALS, head_scale=1.0)


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return Processor(ImageTransform((32, 32)), TextTransform(12, tokenizer(tmp_path_factory.mktemp("words"))))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sample(number: int = 0, **meta: object) -> Sample:
    return Sample(f"{number}", png_image(number), meta={"label": ANIMALS[number % 3]} | meta)


def batch_of(cfg: ImageClassificationConfig, processor: Processor, number: int = 6) -> Any:
    return cfg.collate([cfg.read(sample(n), processor, rng(n)) for n in range(number)])


@pytest.mark.parametrize("features", ["patches", "first"])
@pytest.mark.parametrize("model", MODELS)
def test_task_overfits_six_samples(model: str, features: Any, processor: Processor) -> None:
    torch.manual_seed(0)
    cfg = replace(CFG, features=features)
    task = cfg.build(MODELS[model].build())
    batch = batch_of(cfg, processor)
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
    batch = cfg.collate([cfg.read_question(sample(n), processor, rng()) for n in range(6)])
    shares = task.probabilities(batch)
    assert_close(shares.sum(1), torch.ones(6))
    assert [(ANIMALS[n],) for n in shares.argmax(1).tolist()] == [one.target for one in batch["questions"]]


@torch.no_grad()
def test_patch_mean_by_hand(processor: Processor) -> None:
    """The class token and the model's norm are not included."""
    torch.manual_seed(0)
    task = CFG.build(MODELS["vlmo"].build()).eval()
    model, images = task.model, batch_of(CFG, processor)["image"]
    assert isinstance(model, VLMo)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    last: list[torch.Tensor] = []
    hook = model.blocks[-1].register_forward_hook(lambda *args: last.append(args[-1]))
    vector = model.average_patches(model.embed_image(images))
    hook.remove()
    assert last[0].shape == (6, 17, 32)
    assert_close(vector, torch.stack([last[0][:, n] for n in range(1, 17)]).mean(0))
    expected = task.head(F.layer_norm(vector, (32,), eps=1e-6))
    assert_close(task.logits({"image": images}), expected)
    every = model.token_states(model.embed_image(images), torch.arange(17).expand(6, -1))
    assert_close(model.norm(last[0]), every)  # what averages is what goes on elsewhere


def test_head_scale() -> None:
    torch.manual_seed(0)
    weights = ImageClassificationConfig(num_classes=500).build(MODELS["vlmo"].build()).head.weight
    assert weights.std().item() == pytest.approx(0.02 * 0.001, rel=0.05)


@pytest.mark.parametrize(("label", "expected"), [("dog", 1), (2, 2), (0, 0)])
def test_labels_by_name_and_index(label: object, expected: int, processor: Processor) -> None:
    assert CFG.read(sample(label=label), processor, rng())["target"] == expected
    assert CFG.read_question(sample(label=label), processor, rng())["question"] == Question(
        "0", "0", "", (ANIMALS[expected],)
    )


def test_unknown_labels_are_broken_samples(processor: Processor) -> None:
    with pytest.raises(BrokenSample, match=r"'cow'; the labels of the task are cat, dog, fish"):
        CFG.read_question(sample(label="cow"), processor, rng())
    with pytest.raises(BrokenSample, match=r"label is 'cow'; .* 0, 1, .* 19, and 980 more"):
        ImageClassificationConfig().read(sample(label="cow"), processor, rng())
    with pytest.raises(BrokenSample, match='no "label"'):
        CFG.read(Sample("x", png_image(0)), processor, rng())
    assert CFG.read_question(Sample("x", png_image(0)), processor, rng())["question"].target == ()


@pytest.mark.parametrize(
    "changes", [{"num_classes": 1}, {"labels": ("a", "a")}, {"label_smoothing": 1.0}, {"random_erasing": 2.0}]
)
def test_invalid_config_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"different; give two|label_smoothing is"):
        ImageClassificationConfig(**changes)


def test_labels_are_a_file_on_the_command_line_and_stored_in_json(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("\n".join(ANIMALS), encoding="utf-8")
    cfg = tyro.cli(ImageClassificationConfig, args=["--labels", str(file), "--mixup.cutmix-alpha", "1.0"])
    assert cfg == ImageClassificationConfig(labels=ANIMALS, mixup=Mixup(cutmix_alpha=1.0))
    assert from_json(to_json(cfg)) == cfg


def test_label_smoothing_and_mixup_by_formula(processor: Processor) -> None:
    """Compute the loss in a double loop: shares of both classes, with label smoothing 0.1."""
    torch.manual_seed(0)
    cfg = replace(CFG, label_smoothing=0.1, mixup=Mixup(mixup_alpha=0.8, cutmix_alpha=1.0))
    task, batch = cfg.build(MODELS["vlmo"].build()), batch_of(cfg, processor, 4)
    found, given = [], []
    for seed in range(4):
        torch.manual_seed(seed)
        loss = task(batch).loss
        torch.manual_seed(seed)
        images, share = cfg.mixup(batch["image"])
        logs = task.logits({"image": images}).log_softmax(1)
        expected = torch.zeros(())
        for row in range(4):
            for number in range(3):
                own, other = (batch["target"][place] == number for place in (row, 3 - row))
                shares = share * own + (1 - share) * other
                expected = expected - (0.9 * shares + 0.1 / 3) * logs[row, number] / 4
        assert_close(loss, expected)
        found.append(share)
        given.append(float(loss.detach()))
    assert len(set(found)) == len(set(given)) == 4
    task.eval()
    assert_close(task(batch).loss, F.cross_entropy(task.logits(batch), batch["target"], label_smoothing=0.1))


def test_erasing_needs_augmentation(processor: Processor) -> None:
    cfg, plain = replace(CFG, random_erasing=1.0), processor.image(png_image(0), rng())
    assert torch.equal(cfg.read(sample(), processor, rng())["image"], plain)
    augmented = Processor(ImageTransform((32, 32), Augment(crop=(1, 1), flip=0.0, rand_augment=False)), processor.text)
    erased = cfg.read(sample(), augmented, rng())["image"]
    assert 0.01 < (erased != plain).float().mean() < 0.4
    assert torch.equal(replace(cfg, random_erasing=0.0).read(sample(), augmented, rng())["image"], plain)
    assert torch.equal(cfg.read_question(sample(), augmented, rng())["image"], plain)


def test_linear_probe_freezes_the_model(processor: Processor) -> None:
    task = CFG.build(MODELS["vlmo"].build())
    freeze(task, ("head.*",))
    task(batch_of(CFG, processor)).loss.backward()
    assert {name for name, parameter in task.named_parameters() if parameter.grad is not None} == {
        "head.weight",
        "head.bias",
    }


def test_top_five_accuracy() -> None:
    metric = TopAccuracy()
    assert metric.result() == {}
    for truth in ("a", "b", "e", "f"):
        metric.add(Question("", "", "", (truth,)), ("a", "b", "c", "d", "e", "f"))
    assert metric.result() == {"accuracy": 1 / 4, "accuracy/top5": 3 / 4}
