"""Measuring a recipe: numbers of parameters by hand, and processes that fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dualfuse.cli import main as cli
from dualfuse.errors import DualfuseError
from dualfuse.recipe import Recipe, Towers, TowerTraining
from dualfuse.training import measure
from dualfuse.training.measure_steps import measured
from tests import tiny


def _recipe(folder: Path) -> Recipe:
    towers = Towers(TowerTraining("frozen"), TowerTraining("lora", rank=2))
    recipe = tiny.changed(tiny.recipe(folder), itc_features="unimodal", mlm_weight=0.0, batch_size=4)
    return replace(recipe, model=tiny.BRIDGETOWER, towers=towers)


def test_steps_report_memory_speed_and_the_trained_parameters(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    numbers, task = measured(recipe, 1), recipe.build()
    lora = sum(2 * (i + o) for i, o in 2 * [*4 * [(64, 64)], (64, 64), (64, 64)])
    parts = [task.itc_heads, task.itm_head, *(getattr(task.model, name) for name in ("transforms", "types"))]
    parts += [task.model.first_norms, task.model.layers, task.model.bridges, task.model.poolers]
    assert numbers["trained"] == lora + sum(p.numel() for part in parts for p in part.parameters())
    assert numbers["samples_per_second"] > 0
    assert numbers["peak_memory"] > 1 << 20
    assert "stored_samples_per_second" not in numbers  # one tower is trained


@pytest.mark.slow
def test_the_command_runs_every_size_in_a_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = _recipe(tmp_path)
    (result,) = measure.measure(replace(recipe, data=replace(recipe.data, train=())), [2], 1)
    assert (result.batch_size, result.problem) == (2, "")
    assert result.samples_per_second > 0
    assert "samples/s" in result.line()
    assert cli.main(["measure", "ten-seconds", "--batch-sizes", "0"]) == 2
    assert "batch sizes" in capsys.readouterr().err


def test_errors_of_the_process_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(tmp_path)
    with pytest.raises(DualfuseError, match="missing"):
        list(measure.measure(replace(recipe, data=replace(recipe.data, train=("missing.tar",))), [2], 1))
    for code, message in ((-9, "memory"), (1, "IndexError: 3")):
        ended = type("Ended", (), {"returncode": code, "stdout": "", "stderr": "Traceback\nIndexError: 3"})
        monkeypatch.setattr(measure.subprocess, "run", lambda *_, ended=ended, **__: ended)
        (result,) = measure.measure(recipe, [4], 1)
        assert message in result.line()
    monkeypatch.undo()
    json.dumps(vars(result))
