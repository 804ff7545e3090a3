"""The recipe that adds a fusion encoder to a model: search stays bitwise what it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dual_folders import write_clip, write_siglip

import dualfuse
from dualfuse import hub, recipes
from dualfuse.cli import main as cli
from dualfuse.cli.train import given
from dualfuse.data.text.padding import pad_texts
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_text import CLIPTextConfig
from dualfuse.recipe import Recipe
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.training import loop
from tests import tiny

TEXT = CLIPTextConfig(width=32, depth=3, heads=2, feed_forward=64, vocab_size=tiny.MODEL.vocab_size, text_length=12)
"""Of another width and depth than the image tower."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    folder = tmp_path_factory.mktemp("start")
    task = PairsConfig(itc_features="unimodal", itc_head=ITCHeadConfig(width=16), itm_weight=0.0, mlm_weight=0.0)
    recipe = replace(tiny.recipe(folder), model=replace(tiny.BRIDGETOWER, text=TEXT), task=task)
    torch.manual_seed(1)
    return hub.save(folder / "model", recipe.build(), recipe), recipe


def test_search_stays_and_fusion_is_trained(
    start: tuple[Path, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder, trained_on = start
    (recipe,) = recipes.find_recipe("fuse", **given(["--start-from", str(folder), "--data.validation=x"]))
    assert recipe.run.best == "*/reranked/R@*"
    data = replace(recipe.data, train=trained_on.data.train, validation=trained_on.data.train[0], batch_size=8)
    run = replace(recipe.run, epochs=0.5, eval_epochs=0.5, eval_rerank=2)
    recipe = replace(recipe, model=replace(recipe.model, width=32), data=replace(data, num_workers=0), run=run)
    out = loop.train((recipe,), tmp_path / "run")

    before, after = hub.load(folder).task, hub.load(out).task
    images, ids = torch.rand(3, 3, 32, 32), torch.randint(5, 19, (3, 7))
    mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    with torch.no_grad():
        for first, second in (
            [task.image_features(task.model.embed_image(images)) for task in (before, after)],
            [task.text_features(task.model.embed_text(ids, mask)) for task in (before, after)],
        ):
            assert torch.equal(first, second)
        assert torch.equal(before.feature_heads[0].scale, after.feature_heads[0].scale)
    assert after.itm_head.weight.any()  # it started at zero
    assert after.can_match
    assert (tmp_path / "run" / "best").is_dir()

    (vqa,) = recipes.find_recipe("fuse-vqa", start_from=str(out))
    assert vqa.model == recipe.model
    (nlvr2,) = recipes.find_recipe("fuse-nlvr2", start_from=str(folder))
    assert nlvr2.model.image_slots == 2


def test_it_is_listed_without_a_start_and_refuses_other_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "fuse", "--data.train", "pairs.tar"]) == 2
    assert "--start-from" in capsys.readouterr().err
    (recipe,) = recipes.find_recipe("fuse")
    assert isinstance(recipe.model, BridgeTowerConfig)
    vlmo = hub.save(tmp_path / "vlmo", (vlmo := tiny.recipe(tmp_path)).build(), vlmo)
    with pytest.raises(DualfuseError, match="two towers"):
        recipes.find_recipe("fuse", start_from=str(vlmo))


@pytest.mark.parametrize("write", [write_clip, write_siglip])
def test_a_fusion_encoder_is_added_to_a_foreign_dual_encoder(
    write: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path / "start")
    data, small = tiny.shards(tmp_path / "data", 12), ("--model.width", "32", "--model.feed-forward", "32")
    words = ("train", "fuse", "--start-from", str(tmp_path / "start"), "--out", str(tmp_path / "run"))
    flags = ("--data.train", data, "--data.batch-size", "4", "--data.num-workers", "0", "--run.steps", "2")
    assert cli.main([*words, *flags, *small]) == 0
    before, after = dualfuse.load(tmp_path / "start"), dualfuse.load(tmp_path / "run" / "final")
    images = [each.image for each in tiny.samples(3)]
    with torch.no_grad():
        pixels = torch.stack([after.processor.image(each, np.random.default_rng(0)) for each in images])
        ids, mask = pad_texts([after.processor.text.encode(text).ids for text in ("a boat", "two big cats", "red")])
        one, other = (
            (
                m.task.image_features(m.task.model.embed_image(pixels)),
                m.task.text_features(m.task.model.embed_text(ids, mask)),
            )
            for m in (before, after)
        )
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    match = dualfuse.predict(after, image=images[0], text="a boat").match
    assert match is not None
    assert 0 <= match <= 1
