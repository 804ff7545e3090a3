"""Damaged tokenizers, configs and files of a run give a value or a DualfuseError, never another exception."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from damaged import changed_json, damaged, told, values
from hypothesis import given
from hypothesis import strategies as st

from dualfuse import hub
from dualfuse.config import from_json, to_json
from dualfuse.data.text import tokenizer as words
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.recipe import Recipe
from dualfuse.training import checkpoint
from dualfuse.training.optim import build_optimizer
from dualfuse.training.resume_checks import is_finished
from dualfuse.training.run_log import Log, SkippedLog

KNOWN = ("is", "model", "task", "data", "depth", "width", "dualfuse.recipe:Data", "os:system")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return tiny.recipe(tmp_path_factory.mktemp("tiny"), images=2)


@pytest.fixture(scope="module")
def model(made: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.save(tmp_path_factory.mktemp("model") / "model", made.build(), made)


def tokens(path: Path) -> object:
    words.load_tokenizer.cache_clear()
    found = TextTransform(12, str(path)).encode("a red cat [SEP] \u4e2d\0 runs, " * 5)
    assert found.ids.dtype == np.int64 and len(found.ids) <= 12
    return found


@given(data=st.data())
def test_tokenizers_with_other_values(made: Recipe, folder: Path, data: st.DataObject) -> None:
    whole = json.loads(Path(made.data.tokenizer).read_text())
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(data.draw(changed_json(whole, tuple(whole)))))
    told(lambda: tokens(path))


@given(data=st.data())
def test_damaged_tokenizers(made: Recipe, folder: Path, data: st.DataObject) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(data.draw(damaged(Path(made.data.tokenizer).read_bytes())))
    told(lambda: tokens(path))


@given(data=st.data())
def test_configs(made: Recipe, data: st.DataObject) -> None:
    told(lambda: from_json(data.draw(changed_json(to_json(made), KNOWN) | values(KNOWN))))


@given(data=st.data())
def test_model_folders(model: Path, folder: Path, data: st.DataObject) -> None:
    shutil.copytree(model, folder / "model", dirs_exist_ok=True)
    whole = json.loads((model / "config.json").read_text())
    for part in ("model", "task", "data"):  # sizes stay small, so that models fit into memory
        if data.draw(st.booleans()):
            whole[part] = data.draw(changed_json(whole[part], KNOWN).filter(is_small))
    (folder / "model" / "config.json").write_text(json.dumps(whole))
    told(lambda: hub.load(folder / "model"))


def is_small(value: object) -> bool:
    """Return whether all numbers are small enough for the model to fit into memory."""
    if isinstance(value, dict | list):
        return all(map(is_small, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int | float) or not abs(value) > 1000


@pytest.mark.parametrize("name", ["recipe.json", "data.json", "log.jsonl", "skipped.jsonl", "state.json"])
@given(data=st.data())
def test_files_of_a_run(made: Recipe, name: str, folder: Path, data: st.DataObject) -> None:
    """All files but the weights that are read before a run resumes."""
    step = folder / "checkpoints" / "step-00000003"
    step.mkdir(parents=True, exist_ok=True)
    whole = {"log.jsonl": {"step": 1, "seconds": 2.0}, "skipped.jsonl": {"step": 1, "key": "x"}}
    recipe = to_json(made)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    file = (step if name == "state.json" else folder) / name
    content = data.draw(
        changed_json(whole.get(name, recipe if name == "recipe.json" else {"step": 3, "sizes": {}}), KNOWN)
    )
    file.write_text(json.dumps(content) + "\n")

    def resume() -> None:
        is_finished(made, folder)
        if name == "state.json":
            task = made.build()
            checkpoint.restore(step, task, build_optimizer(task, made.optim))
        elif name != "recipe.json":
            with Log(folder, steps=9, start=2):
                SkippedLog(folder, 2)

    told(resume)
    for path in folder.glob("*.json*"):
        path.unlink()
