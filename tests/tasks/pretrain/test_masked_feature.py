"""A teacher's features of hidden patches, against loops over images and patches, for both kinds of teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import BRIDGETOWER, MODEL, changed, png_image, recipe

from dualfuse import hub
from dualfuse.data.image.block_mask import BlockMask
from dualfuse.data.image.transform import Augment, ImageTransform, Preprocess
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.models.base import ModelConfig
from dualfuse.models.vlmo import InitConfig
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.pretrain.masked_feature import MaskedFeature, MaskedFeatureConfig, patch_states
from dualfuse.training.loop import train

LEARNER = replace(MODEL, drop_path=0.0, positions="absolute", init=InitConfig(std=0.18, layer_scale=0.0))
TEACHERS: dict[str, tuple[ModelConfig, int]] = {
    "VLMo": (replace(LEARNER, width=48, patch_size=4, image_size=(16, 16), positions="relative"), 48),
    "CLIP": (replace(BRIDGETOWER, image=replace(BRIDGETOWER.image, patch_size=4, image_size=(16, 16))), 64),
}
LOOKS = Preprocess(mean=(0.2, 0.4, 0.6), std=(0.5, 0.25, 0.3))
TASK = MaskedFeatureConfig(patch=8, teacher_patch=4, mask=BlockMask(patches=6, smallest=2))


def taught(folder: Path, name: str) -> MaskedFeatureConfig:
    """Save a random teacher for 4 x 4 patches of 4 pixels."""
    model, channels = TEACHERS[name]
    torch.manual_seed(1)
    data = Data(image_size=(16, 16), text_length=12, preprocess=LOOKS)
    made = Recipe(name="teacher", model=model, task=EntailmentConfig(labels=("a", "b")), data=data)
    hub.save(folder, made.build(), made)
    return replace(TASK, teacher=str(folder), channels=channels)


def batch_of(cfg: MaskedFeatureConfig, number: int) -> dict:
    processor = Processor(ImageTransform((32, 32), Augment(rand_augment=False)), TextTransform(8))
    rows = [cfg.read(Sample(f"{n}", png_image(n)), processor, np.random.default_rng(n)) for n in range(number)]
    return dict(cfg.collate(rows))


@pytest.mark.parametrize("name", TEACHERS)
def test_loss_matches_a_loop(name: str, tmp_path: Path) -> None:
    cfg = taught(tmp_path, name)
    torch.manual_seed(0)
    task = cfg.build(LEARNER.build()).eval()
    batch = batch_of(cfg, 4)
    assert batch["view"].shape == (4, 3, 16, 16) and batch["view"].dtype == torch.uint8
    teacher = hub.load(tmp_path).task.model
    assert not any(name.startswith("teacher") for name in task.state_dict())
    cosines = []
    for n in range(4):
        view = batch["view"][n].double() / 255
        pixels = torch.stack([(view[c] - LOOKS.mean[c]) / LOOKS.std[c] for c in range(3)])[None].float()
        if name == "CLIP":
            states = teacher.image_tower(pixels, (1,)).states[0][0]  # the upper of two layers
        else:
            states = teacher.token_states(teacher.embed_image(pixels), torch.arange(17)[None])[0]
        one = {key: value[n : n + 1] for key, value in batch.items()} | {"positions": torch.arange(1, 17)[None]}
        said = task.logits(one)  # type: ignore[arg-type]  # of all 16
        for patch in torch.arange(16)[batch["hidden"][n]].tolist():
            a, b = said[patch], states[1 + patch]
            cosines.append((a @ b) / (a.square().sum().sqrt() * b.square().sum().sqrt()))
    output = task(batch)
    mean = torch.stack(cosines).mean()
    torch.testing.assert_close(output.loss, 1 - mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.log["cosine"], mean.detach(), atol=1e-5, rtol=1e-4)
    assert abs(float(mean.detach())) < 0.5


def test_training_fits_the_teacher(tmp_path: Path) -> None:
    """Overfits four images."""
    cfg = taught(tmp_path, "VLMo")
    torch.manual_seed(0)
    task, batch = cfg.build(LEARNER.build()), batch_of(cfg, 4)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    for _ in range(40):
        output = task(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.log["cosine"] > 0.8


def test_a_run_can_be_loaded_and_started_from(tmp_path: Path) -> None:
    cfg = taught(tmp_path / "teacher", "VLMo")
    first = changed(recipe(tmp_path, images=[Sample(f"{n}", png_image(n)) for n in range(12)]), steps=2, save_every=2)
    final = train((replace(first, task=cfg),), tmp_path / "run")
    assert isinstance(hub.load(final).task, MaskedFeature)
    train((changed(recipe(tmp_path / "pairs"), steps=1, start_from=str(final)),), tmp_path / "next")
    report = json.loads((tmp_path / "next" / "start.json").read_text())
    assert "model.blocks.0.experts.image.up.weight" in report["copied"]
    assert "model.words.word.weight" in report["new"]  # it has seen images alone
    assert {"head.weight", "mask_token"} <= set(report["unused"])


def test_mismatched_teachers_are_refused(tmp_path: Path) -> None:
    cfg = taught(tmp_path, "VLMo")
    batch = batch_of(cfg, 2)

    def refused(match: str, **changes: object) -> None:
        task = replace(cfg, **changes).build(LEARNER.build())
        with pytest.raises(ValueError, match=match):
            task(batch)

    refused("no teacher: set --task.teacher", teacher="")
    refused("is not a model folder", teacher=str(tmp_path / "gone"))
    refused("16 patches of 48 channels, but .* 16 patches of 32 channels; set --task.channels 48", channels=32)
    batch["view"] = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    refused("gives 64 patches of 48 channels, but .* 16 patches of 48")
    with pytest.raises(ValueError, match="Linear has no patch states"):
        patch_states(torch.nn.Linear(2, 2), torch.zeros(1, 3, 8, 8))
