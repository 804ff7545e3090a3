"""A clock that jumps, back and forth and by years, changes neither the run nor what it says."""

from __future__ import annotations

import os
import time
from itertools import cycle
from pathlib import Path

import pytest
import torch
from tiny import at_step, changed, interrupt, lines, weights

from dualfuse.recipe import Recipe
from dualfuse.training import checkpoint, loop
from dualfuse.training.run_log import read_log

YEAR = 365 * 24 * 3600
JUMPS = (0.0, 10.0 * YEAR, -3600.0, 3600.0, 40.0 * YEAR)


def test_jumping_clock_does_not_change_the_log(
    tiny: Recipe, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped and gone on with, so that checkpoints of all times lie side by side."""
    clock, jumps = time.time, cycle(JUMPS)
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int((clock() + next(jumps)) * 1e9))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "seed_step", at_step(7, interrupt))
        loop.train((changed(tiny, save_every=1, keep_last=9),), tmp_path)
    ages = {path: number for number, path in enumerate(sorted((tmp_path / "checkpoints").iterdir(), reverse=True))}
    for path, age in ages.items():  # the newest one by its number is the oldest by its time
        for file in (path, *path.iterdir()):
            os.utime(file, (1e9 - 1e6 * age, 1e9 + 1e6 * age))
    newest = checkpoint.latest(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "step-00000007"
    loop.train((tiny,), tmp_path)
    assert lines(tmp_path) == lines(whole)
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path).items())
    seconds = [line["seconds"] for line in read_log(tmp_path)]
    assert seconds == sorted(seconds) and 0 < seconds[-1] < 600
    assert all(0 < line["samples_per_second"] < 1e5 for line in read_log(tmp_path))
    left = [line.rsplit("  ", 1)[1] for line in caplog.messages if line.startswith("step ")]
    assert len(left) == 10 and all(time_left.startswith("0:0") for time_left in left)
