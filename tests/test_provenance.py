"""Runs and models record which code, command and machine made them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import changed

import dualfuse
from dualfuse import hub
from dualfuse.provenance import _git, provenance, record
from dualfuse.recipe import Recipe
from dualfuse.training import loop


def test_run_and_model_folder_have_it(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dualfuse", "train", "tiny"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_TOKEN", "secret")
    loop.train((changed(tiny, steps=1),), tmp_path)
    [start] = json.loads((tmp_path / "provenance.json").read_text())
    model = json.loads((tmp_path / "final" / "provenance.json").read_text())
    assert start == {"step": 0, **model}
    assert model["command"] == ["dualfuse", "train", "tiny"] and model["host"]
    assert model["versions"]["dualfuse"] == dualfuse.__version__
    assert model["versions"]["torch"] == torch.__version__ and model["versions"].keys() > {"python", "numpy"}
    assert model["environment"]["OMP_NUM_THREADS"] == "1" and "secret" not in json.dumps(model)


def test_each_start_of_a_run_is_recorded(tmp_path: Path) -> None:
    for step in (0, 5):
        record(tmp_path, step, {})
    assert [entry["step"] for entry in json.loads((tmp_path / "provenance.json").read_text())] == [0, 5]
    record(tmp_path, 0, {})  # a new run in this folder
    (tmp_path / "provenance.json").write_text("{")
    record(tmp_path, 7, {})
    assert [entry["step"] for entry in json.loads((tmp_path / "provenance.json").read_text())] == [7]


def test_commit_and_changes_of_the_checkout(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    file.write_text("a = 1")
    assert _git(file) == {}  # not in a checkout
    for command in ("init -q", "add plugin.py", "-c user.name=a -c user.email=a@b commit -qm a"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    _git.cache_clear()
    clean = _git(file)
    assert len(str(clean["commit"])) == 40 and clean["dirty"] is False
    file.write_text("a = 2")
    (tmp_path / "untracked.py").write_text("")
    _git.cache_clear()
    assert _git(file) == {**clean, "dirty": True}
    assert _git(tmp_path / "untracked.py") == {}  # such as an installed package in an environment inside a checkout


def test_plugins_are_recorded(tiny: Recipe) -> None:
    data = hub.recipe_to_json(tiny) | {"task": {"is": f"{__name__}:Task"}}
    [(name, entry)] = provenance(data)["plugins"].items()
    assert name == __name__ and entry["file"] == __file__ and len(entry["sha256"]) == 64


def test_citation_has_the_version_of_the_package() -> None:
    text = (Path(__file__).parents[1] / "CITATION.cff").read_text()
    assert f"version: {dualfuse.__version__}\n" in text and "license: Apache-2.0" in text
