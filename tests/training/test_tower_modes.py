"""Towers that are frozen, adapted by LoRA, or trained in part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dualfuse import hub
from dualfuse.errors import DualfuseError
from dualfuse.recipe import Recipe, Towers, TowerTraining
from dualfuse.training import loop
from dualfuse.training.optim import build_optimizer
from dualfuse.training.tower_modes import check_towers, set_tower_modes, tower_rates
from tests import tiny

LORA = Towers(image=TowerTraining("lora", rank=2), text=TowerTraining("lora", rank=2, targets=("attention.*",)))


def _recipe(folder: Path, towers: Towers) -> Recipe:
    recipe = tiny.changed(tiny.recipe(folder), itc_features="unimodal", steps=6, save_every=3)
    return replace(recipe, model=replace(tiny.BRIDGETOWER, dropout=0.1), towers=towers)


def test_frozen_towers_stay_in_evaluation_mode_and_the_last_block_alone_is_trained(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, Towers(image=TowerTraining("frozen"), text=TowerTraining("last", blocks=1, lr_mult=0.5)))
    task = recipe.build()
    set_tower_modes(task, recipe.towers)
    task.train()
    assert not any(part.training for part in task.model.image_tower.modules())
    assert task.model.text_tower.training
    trained = {name for name, p in task.model.named_parameters() if p.requires_grad and "_tower" in name}
    assert trained == {f"text_tower.layers.1.{name}" for name, _ in task.model.text_tower.layers[1].named_parameters()}
    groups = build_optimizer(task, recipe.optim, tower_rates(task, recipe.towers)).param_groups
    assert {group["rate"] for group in groups if any("text_tower" in name for name in group["names"])} == {0.5}
    with pytest.raises(DualfuseError, match="2 blocks"):
        set_tower_modes(recipe.build(), Towers(text=TowerTraining("last", blocks=3)))


def test_lora_resumes_bitwise_and_is_merged_when_it_is_saved(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, LORA)
    whole = hub.load(loop.train((recipe,), tmp_path / "whole"))
    loop.train((recipe,), tiny.stopped(recipe, tmp_path / "stopped", step=4))
    resumed, expected = tiny.weights(tmp_path / "stopped"), tiny.weights(tmp_path / "whole")
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())
    initial = _recipe(tmp_path, LORA)
    torch.manual_seed(initial.run.seed)
    start = initial.build().state_dict()
    moved = {name for name, tensor in start.items() if not torch.equal(tensor, expected[name])}
    assert "model.image_tower.blocks.0.up.weight" in moved
    assert not {"model.text_tower.layers.0.up.weight", "model.image_tower.positions"} & moved

    adapted = recipe.build()
    set_tower_modes(adapted, recipe.towers)
    last = tmp_path / "whole" / "checkpoints"
    from dualfuse.training import checkpoint

    checkpoint.restore(checkpoint.latest(last), adapted, build_optimizer(adapted, recipe.optim))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        unmerged, merged = (t.eval().model.embed_image(images).states[-1] for t in (adapted, whole.task))
    torch.testing.assert_close(unmerged, merged, rtol=1e-5, atol=1e-6)


def test_lora_refuses_sharding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualfuse.training.tower_modes.dist.world_size", lambda: 2)
    recipe = tiny.changed(_recipe(tmp_path, LORA), fsdp=True)
    with pytest.raises(DualfuseError, match=r"run\.fsdp"):
        check_towers(recipe)
    check_towers(tiny.changed(recipe, fsdp=False))


def test_a_model_without_towers_has_no_modes(tmp_path: Path) -> None:
    with pytest.raises(DualfuseError, match="VLMo"):
        set_tower_modes(tiny.recipe(tmp_path).build(), LORA)
