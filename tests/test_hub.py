"""A model folder gives back what was saved, and says what is wrong with one that does not."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import caption, changed, picture, recipe
from torch import Tensor

from dualfuse import hub
from dualfuse.data import text
from dualfuse.recipe import Recipe
from dualfuse.tasks.pairs import Pairs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return recipe(tmp_path_factory.mktemp("tiny"), pictures=2)


@pytest.fixture(scope="module")
def task(tiny: Recipe) -> Pairs:
    """With weights that tell things apart."""
    torch.manual_seed(3)
    built = tiny.task.build(tiny.model.build())
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built.eval()


@pytest.fixture
def folder(tiny: Recipe, task: Pairs, tmp_path: Path) -> Path:
    return hub.save(tmp_path / "model", task, tiny)


@torch.inference_mode()
def answers(task: Pairs, prep: hub.Prep) -> tuple[Tensor, ...]:
    image = task.model.embed_image(torch.stack([prep.image(picture(n), np.random.default_rng(n)) for n in range(3)]))
    ids = torch.stack([torch.from_numpy(prep.text.encode(caption(n)).ids) for n in range(3)])
    words = task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool))
    return task.image_features(image), task.text_features(words), task.match_score(image, words)


def test_what_is_loaded_answers_the_same(
    tiny: Recipe, task: Pairs, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = hub.load(folder)
    assert isinstance(loaded.task, Pairs) and not loaded.task.training
    assert loaded.recipe == tiny
    for prep in (loaded.prep, hub.Prep(loaded.prep.image, tiny.data.text)):
        for one, other in zip(answers(loaded.task, prep), answers(task, prep), strict=True):
            assert torch.equal(one, other)
    assert loaded.prep.image.augment is None
    assert len(set(answers(task, prep)[2].tolist())) == 3
    monkeypatch.chdir(folder.parent)
    assert torch.equal(answers(hub.load(folder.name).task, prep)[0], answers(task, prep)[0])


def test_a_folder_needs_nothing_but_itself(tiny: Recipe, task: Pairs, tmp_path: Path) -> None:
    made = recipe(tmp_path / "elsewhere", pictures=1)
    hub.save(tmp_path / "model", task, made)
    shutil.rmtree(tmp_path / "elsewhere")
    text.load.cache_clear()
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    loaded = hub.load(moved)
    assert loaded.prep.text.encode("a red cat").ids.tolist() == tiny.data.text.encode("a red cat").ids.tolist()
    assert sorted(path.name for path in moved.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_saving_again_replaces_all(tiny: Recipe, task: Pairs, folder: Path) -> None:
    (folder / "note.txt").write_text("old")
    (folder.parent / "model.partial").mkdir()
    (folder.parent / "model.partial" / "half").touch()
    hub.save(folder, task, changed(tiny, name="again"))
    assert hub.read_recipe(folder).name == "again"
    assert not (folder / "note.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("broken", ["rmtree", "replace"])
def test_a_kill_leaves_a_whole_model_or_none(tiny: Recipe, task: Pairs, folder: Path, broken: str) -> None:
    """Dies in the middle of removing the old one, or before the new one is in its place."""

    def kill(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half_removed(path: Path, **_: object) -> None:
        if path.exists():
            (path / hub.WEIGHTS).unlink()
            kill()

    def work() -> None:
        setattr(hub.shutil if broken == "rmtree" else hub.os, broken, half_removed if broken == "rmtree" else kill)
        hub.save(folder, task, changed(tiny, name="again"))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert hub.load(folder).recipe.name == ("again" if broken == "rmtree" else "tiny")


def test_damaged_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-1], whole[:40], b"", b"<html>log in</html>"):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=r"model/model.safetensors is missing, truncated or no safetensors file"):
            hub.load(folder)
    weights.unlink()
    with pytest.raises(ValueError, match=r"model/model.safetensors is missing"):
        hub.load(folder)


def edit(folder: Path, *path: str, value: object) -> None:
    config = inner = json.loads((folder / "config.json").read_text())
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_weights_of_another_model(folder: Path) -> None:
    edit(folder, "model", "width", value=64)
    with pytest.raises(ValueError, match=r"(?s)model.safetensors does not fit its own config.json: .*size mismatch"):
        hub.load(folder)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("model", "is"), "os:system", "names no frozen dataclass"),
        (("task", "is"), "dualfuse.engine.checkpoint:save", "names no frozen dataclass"),
        (("data", "is"), "dualfuse.engine.train:State", "names no frozen dataclass"),
        (("model", "is"), "dualfuse.data.images:Augment", "Augment has no field"),
        (("model",), {"is": "dualfuse.data.images:Augment"}, "describes no recipe"),
        (("data",), {"is": "dualfuse.data.images:Augment"}, "describes no recipe"),
        (("model", "wings"), 2, "VLMoConfig has no field wings"),
        (("is",), "dualfuse.recipe:Run", "Run has no field"),
    ],
)
def test_a_hostile_config(folder: Path, path: tuple[str, ...], value: object, said: str) -> None:
    edit(folder, *path, value=value)
    with pytest.raises(ValueError, match=rf"model/config.json .*{said}"):
        hub.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00", '"x"', "[]", "3", "null", '{"is": "x"}'])
def test_a_config_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"model/config.json (does not describe a recipe|describes no recipe)"):
        hub.load(folder)


def test_what_is_no_model_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere is no model folder: it is no folder, but should have a config.json"):
        hub.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is no model folder: it holds model, but should have"):
        hub.load(folder.parent)
    with pytest.raises(ValueError, match=r"config.json is no model folder: it is no folder"):
        hub.load(folder / "config.json")
