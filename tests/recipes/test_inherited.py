"""``train FOLDER`` says which settings of the folder's recipe it keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import changed

from dualfuse import hub
from dualfuse.cli import main as cli
from dualfuse.recipe import Recipe


def test_a_frozen_set_is_said_with_the_flag_that_unfreezes(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = replace(changed(tiny, itm_weight=0.5, name="probe"), train_only=("itm_head.*",))
    hub.save(tmp_path / "probe", probe.build(), probe)
    words = ["train", str(tmp_path / "probe"), "--data.train", tiny.data.train[0], "--run.steps", "1"]
    assert cli.main([*words, "--out", str(tmp_path / "one"), "--optim.warmup", "0"]) == 0
    err = capsys.readouterr().err
    lines = err[: err.index(" parameters are trained")].splitlines()
    start = lines.index(f"settings of {tmp_path / 'probe'} that this run keeps:")
    data, task, optim, run, frozen = lines[start + 1 : start + 6]
    assert data.startswith("  data: ") and "augment.rand_augment False" in data and "batch_size 8" in data
    assert tiny.data.train[0] not in data
    assert task == "  task: itm_weight 0.5" and optim == "  optim: lr 0.002, grad_clip_norm 1.0"
    assert run == "  run: log_every 1, save_every 5"
    assert frozen.startswith("  train_only: itm_head.*; all other parameters stay frozen, --train-only without a value")
    assert (tmp_path / "one" / "frozen.txt").read_text()
    assert cli.main([*words, "--out", str(tmp_path / "all"), "--train-only"]) == 0
    assert "train_only" not in capsys.readouterr().err
    assert not (tmp_path / "all" / "frozen.txt").read_text()


def test_a_named_recipe_inherits_nothing(tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data.train", tiny.data.train[0], "--data.batch-size", "4", "--run.steps", "1", "--data.validation", ""]
    assert cli.main(["train", "ten-seconds", "--out", str(tmp_path), *data]) == 0
    assert "that this run keeps" not in capsys.readouterr().err
