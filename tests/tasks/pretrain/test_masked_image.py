"""Masked image modeling from images to a trained model, with a tokenizer that is trained first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from dualfuse import hub
from dualfuse.data.image.block_mask import BlockMask
from dualfuse.data.image.transform import Augment, ImageTransform
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.layers.vq.autoencoder import Autoencoder, AutoencoderConfig
from dualfuse.models.vlmo import InitConfig
from dualfuse.recipe import Optim, Recipe, Run
from dualfuse.tasks.pretrain.masked_image import MaskedImage, MaskedImageConfig, open_tokenizer
from dualfuse.tasks.pretrain.vq_tokenizer import VQTokenizerConfig, codebook_grid
from dualfuse.training.loop import train
from dualfuse.training.run_log import read_log

CPU = torch.device("cpu")
WORDS = AutoencoderConfig(codes=16, stride=4, width=8, blocks=1, code_width=4)
TASK = MaskedImageConfig(codes=16, patch=8, stride=4, mask=BlockMask(patches=6, smallest=2))
LEARNER = replace(tiny.MODEL, drop_path=0.0, positions="absolute", init=InitConfig(std=0.18, layer_scale=0.0))
IMAGES = [Sample(f"{n:03d}", tiny.png_image(n)) for n in range(24)]  # without any text


def tokenizer_recipe(folder: Path, steps: int = 40) -> Recipe:
    data = replace(tiny.recipe(folder, images=IMAGES).data, image_size=(16, 16), augment=Augment(rand_augment=False))
    optim = Optim(lr=5e-3, warmup=5, grad_clip_norm=1.0)
    run = Run(steps=steps, save_every=20, log_every=1)
    return Recipe("tokenizer", WORDS, VQTokenizerConfig(), data, optim, run)


def images_recipe(folder: Path, tokenizer: Path, steps: int = 6) -> Recipe:
    recipe = tiny.recipe(folder, images=IMAGES)
    return replace(
        recipe, task=replace(TASK, tokenizer=str(tokenizer)), run=Run(steps=steps, save_every=3, log_every=1)
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tokenizer trained by the training loop."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return train((tokenizer_recipe(folder),), folder / "run")


def test_a_tokenizer_is_trained_by_the_training_loop(tokenizer: Path) -> None:
    log = read_log(tokenizer.parent)
    assert np.mean([line["error"] for line in log[-5:]]) < 0.6 * log[0]["error"]
    assert log[-1]["codes/used"] > 0.5 and log[-1]["codes/perplexity"] > 6
    opened = open_tokenizer(str(tokenizer), CPU)
    loaded = hub.load(tokenizer)
    views = torch.rand(3, 3, 16, 16)
    assert isinstance(opened, Autoencoder) and not opened.training
    assert torch.equal(opened(views), loaded.task.model(views))
    assert opened(views).shape == (3, 16)


def test_the_grid_shows_reconstructions_and_code_usage(tokenizer: Path) -> None:
    model = open_tokenizer(str(tokenizer), CPU)
    assert isinstance(model, Autoencoder)
    views = torch.randint(256, (7, 3, 16, 16), dtype=torch.uint8)
    few, many = (codebook_grid(model, views, shown=shown) for shown in (2, 7))
    assert many.height > few.height and len(set(few.tobytes())) > 20
    bars = np.array(many)[-100:].min(axis=(0, 2)) < 60  # columns with ink
    assert 0.01 < bars.mean() < 0.99


def test_training_on_images_without_texts(tokenizer: Path, tmp_path: Path) -> None:
    recipe = images_recipe(tmp_path, tokenizer)
    final = train((recipe,), tmp_path / "run")
    log = read_log(tmp_path / "run")
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert log[0]["loss"] == pytest.approx(np.log(16), abs=0.3) and 0 <= log[0]["accuracy/patches"] <= 1
    state = tiny.weights(tmp_path / "run")
    assert {"mask_token", "head.weight", "head.bias"} < state.keys()
    assert all(name.startswith(("model.", "head.", "mask_token")) for name in state)
    assert not any("codebook" in name for name in state)
    assert isinstance(hub.load(final).task, MaskedImage)


def test_training_overfits(tokenizer: Path) -> None:
    torch.manual_seed(0)
    task = replace(TASK, tokenizer=str(tokenizer)).build(LEARNER.build())
    batch = batch_of(4)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    for _ in range(100):
        output = task(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.loss < 0.3 and output.log["accuracy/patches"] > 0.9


def batch_of(number: int) -> dict:
    processor = Processor(ImageTransform((32, 32), Augment(rand_augment=False)), TextTransform(8))
    rows = [TASK.read(sample, processor, np.random.default_rng(n)) for n, sample in enumerate(IMAGES[:number])]
    return dict(TASK.collate(rows))


def test_positions_are_the_hidden_patches() -> None:
    batch = batch_of(6)
    assert batch["image"].shape == (6, 3, 32, 32) and batch["view"].shape == (6, 3, 16, 16)
    assert batch["hidden"].shape == (6, 16) and batch["hidden"].sum(1).max() == 6
    for hidden, rows in zip(batch["hidden"], batch["positions"], strict=True):
        places = (1 + hidden.nonzero()[:, 0]).tolist()
        assert rows.tolist() == places + [0] * (len(rows) - len(places))


def test_the_loss_is_the_mean_over_hidden_patches(tokenizer: Path) -> None:
    """Compare with a head on all patches, one image at a time."""
    torch.manual_seed(0)
    task = replace(TASK, tokenizer=str(tokenizer)).build(tiny.MODEL.build()).eval()
    batch = batch_of(5)
    words = open_tokenizer(str(tokenizer), CPU)(batch["view"].float() / 255)
    losses = []
    for n in range(5):
        one = {name: value[n : n + 1] for name, value in batch.items()}
        hidden = torch.arange(16)[one["hidden"][0]]
        one["positions"] = torch.arange(1, 17)[None]
        logits = task.logits(one)  # type: ignore[arg-type]  # of all 16
        losses.append(F.cross_entropy(logits[hidden], words[n, hidden], reduction="none"))
    output = task(batch)
    torch.testing.assert_close(output.loss, torch.cat(losses).mean())


def test_mismatched_tokenizers_are_refused(tokenizer: Path) -> None:
    batch = batch_of(2)

    def refused(match: str, **changes: object) -> None:
        task = replace(TASK, **({"tokenizer": str(tokenizer)} | changes)).build(tiny.MODEL.build())
        with pytest.raises(ValueError, match=match):
            task(batch)

    refused("16 codes, but the task 8192", codes=8192)
    refused("set --task.tokenizer", tokenizer="")
    batch["view"] = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    refused("set --task.stride 4")
    with pytest.raises(ValueError, match="patch=0"):
        replace(TASK, patch=0)


def test_resuming_a_tokenizer_is_bitwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(tokenizer_recipe(tmp_path, steps=6), run=Run(steps=6, save_every=3, log_every=1))
    train((recipe,), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("dualfuse.training.loop.seed_step", tiny.at_step(4, tiny.interrupt))
        with pytest.raises(KeyboardInterrupt):
            train((recipe,), tmp_path / "stopped")
    train((recipe,), tmp_path / "stopped")
    whole, stopped = tiny.weights(tmp_path / "whole"), tiny.weights(tmp_path / "stopped")
    assert whole.keys() == stopped.keys() and all(torch.equal(whole[name], stopped[name]) for name in whole)
