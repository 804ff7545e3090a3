"""Runs over stored states of frozen towers against runs that compute them in every step."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from many import start

from dualfuse.data.image.transform import Augment
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.dual_encoder import DualEncoderConfig
from dualfuse.models.towers.bert import BertConfig
from dualfuse.models.towers.clip_text import CLIPTextConfig
from dualfuse.recipe import Recipe, Towers, TowerTraining
from dualfuse.training import loop
from dualfuse.training.state_file import INDEX, VALUES, StateFile
from dualfuse.training.store_states import store_states
from dualfuse.training.tower_modes import set_tower_modes
from tests import tiny

FROZEN = Towers(TowerTraining("frozen"), TowerTraining("frozen"))
TEXT = CLIPTextConfig(width=64, depth=2, heads=2, feed_forward=64, vocab_size=tiny.MODEL.vocab_size, text_length=12)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dualfuse" / "tower_states"


@pytest.mark.parametrize("text", [tiny.BRIDGETOWER.text, TEXT], ids=["roberta", "clip"])
def test_the_losses_are_those_without_stored_states(tmp_path: Path, text: BridgeTowerConfig) -> None:
    recipe = _recipe(tmp_path)
    recipe = replace(recipe, model=replace(tiny.BRIDGETOWER, text=text))
    loop.train((recipe,), tmp_path / "stored")
    loop.train((replace(recipe, towers=replace(FROZEN, cache_gb=0.0)),), tmp_path / "computed")
    stored, computed = tiny.lines(tmp_path / "stored"), tiny.lines(tmp_path / "computed")
    assert len(stored) == len(computed) == 6
    for one, other in zip(stored, computed, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-3)
    assert stored != computed  # half precision is visible


def test_a_dual_encoder_stores_pooled_states_alone(tmp_path: Path) -> None:
    text = BertConfig(width=32, depth=2, heads=2, feed_forward=32, vocab_size=tiny.MODEL.vocab_size, text_length=12)
    recipe = replace(_recipe(tmp_path), model=DualEncoderConfig(image=tiny.BRIDGETOWER.image, text=text))
    head = ITCHeadConfig(width=16, layer_norm=True)
    recipe = tiny.changed(recipe, itm_weight=0.0, mlm_weight=0.0, itc_head=head)
    stored = _stored(recipe)
    for file, width in ((stored.images, 64), (stored.texts, 32)):
        assert (file.folder / VALUES).stat().st_size == 2 * width * len(file)
    ids, mask = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[True, True, True], [True, True, False]])
    tower = _task(recipe).model.text_tower
    computed = stored.text(tower, ids, mask, layers=(1,))  # such as a caption with tags
    assert torch.equal(computed.states[0][:, 0], tower(ids, mask, layers=(1,)).pooled)
    loop.train((recipe,), tmp_path / "stored")
    loop.train((replace(recipe, towers=replace(FROZEN, cache_gb=0.0)),), tmp_path / "computed")
    for one, other in zip(tiny.lines(tmp_path / "stored"), tiny.lines(tmp_path / "computed"), strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-3)


def test_a_second_run_does_not_use_the_image_tower(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    first = _stored(recipe)
    task, calls = _task(recipe), []
    task.model.image_tower.register_forward_hook(lambda *_: calls.append(1))
    again = store_states(task, recipe)
    assert len(calls) == 1  # from which the size of all states is computed
    assert again is not None
    assert len(again.images) == len(first.images) == 20  # of 40 samples
    loop.train((recipe,), tmp_path / "run")


@pytest.mark.slow
def test_two_processes_share_the_states_and_a_run_resumes_bitwise(tmp_path: Path, cache: Path) -> None:
    recipe = _recipe(tmp_path)
    assert start(2, lambda: print(loop.train((recipe,), tmp_path / "together"))) == [
        0,
        0,
    ]  # both build, into one folder
    assert sum(len(StateFile(folder)) for folder in cache.iterdir()) == 20 + len(
        {text for sample in tiny.samples(40) for text in sample.texts}
    )
    loop.train((recipe,), tmp_path / "whole")
    loop.train((recipe,), tiny.stopped(recipe, tmp_path / "stopped", step=4))
    resumed, expected = tiny.weights(tmp_path / "stopped"), tiny.weights(tmp_path / "whole")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in expected.items())
    for name, tensor in tiny.weights(tmp_path / "together").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=0)


def test_an_interrupted_build_resumes_and_damage_is_reported(tmp_path: Path, cache: Path) -> None:
    recipe = _recipe(tmp_path)
    complete = _stored(recipe).images
    values = (complete.folder / VALUES).read_bytes()
    index = (complete.folder / INDEX).read_bytes()
    (complete.folder / INDEX).write_bytes(index[: 32 * 7 + 5])  # in the middle of an entry, and of the eighth record
    (complete.folder / VALUES).write_bytes(values[: len(values) // 2])
    again = _stored(recipe).images
    keys = [entry.tobytes() for entry in np.frombuffer(index, "V32")]
    records = StateFile(complete.folder)
    assert all(key[:16] in records for key in keys)
    assert (again.folder / VALUES).read_bytes() != b""
    assert len((again.folder / VALUES).read_bytes()) == len(values)
    broken = bytearray((again.folder / VALUES).read_bytes())
    broken[100] ^= 1
    (again.folder / VALUES).write_bytes(broken)
    with pytest.raises(DualfuseError, match="damaged"):
        for key in keys:
            StateFile(again.folder).read(key[:16])


def test_views_are_drawn_from_those_that_are_stored(tmp_path: Path) -> None:
    recipe = tiny.changed(_recipe(tmp_path), augment=Augment(rand_augment=False))
    recipe = replace(recipe, towers=replace(FROZEN, views=3))
    stored = _stored(recipe)
    assert len(stored.images) == 3 * 20
    transform = stored.processor(recipe.data.processor(), 3).image
    addresses = {tuple(transform(tiny.png_image(0), np.random.default_rng(n)).tolist()) for n in range(20)}
    assert len(addresses) == 3
    with pytest.raises(DualfuseError):
        transform(b"no image", np.random.default_rng(0))


def test_what_is_not_stored_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, cache: Path) -> None:
    caplog.set_level(logging.INFO)
    recipe = _recipe(tmp_path)
    for changed, reason in (
        (tiny.changed(recipe, augment=Augment()), "--towers.views"),
        (replace(recipe, towers=replace(FROZEN, cache_gb=1e-6)), "towers.cache_gb"),
    ):
        assert store_states(_task(changed), changed) is None
        assert reason in caplog.messages[-1]
    assert not cache.exists()
    assert store_states(recipe.build(), recipe) is None  # towers are trained


def test_states_of_other_towers_make_room(tmp_path: Path, cache: Path) -> None:
    recipe = _recipe(tmp_path)
    old = _stored(recipe).images.folder
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    task = _task(recipe)
    torch.nn.init.normal_(task.model.image_tower.class_embedding)
    assert store_states(task, replace(recipe, towers=replace(FROZEN, cache_gb=1.2e-9 * size)))
    assert not old.exists()


def _recipe(folder: Path) -> Recipe:
    recipe = tiny.changed(tiny.recipe(folder), itc_features="unimodal", steps=6, augment=None)
    return replace(recipe, model=replace(tiny.BRIDGETOWER, dropout=0.0), towers=FROZEN)


def _task(recipe: Recipe) -> torch.nn.Module:
    torch.manual_seed(0)
    task = recipe.build()
    set_tower_modes(task, recipe.towers)
    return task


def _stored(recipe: Recipe):
    stored = store_states(_task(recipe), recipe)
    assert stored is not None
    return stored
