"""kill -9 at any moment of a run, twenty times: the run ends with the same weights, and says the same."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from random import Random
from types import FrameType

import pytest
import torch
from forked import in_a_process
from tiny import changed, lines, weights

from dualfuse.recipe import Recipe
from dualfuse.training import loop

LOADING, STEPPING, SAVING, FINISHING = "loading", "stepping", "saving", "finishing"
CODE = {
    loop.fit.__code__: STEPPING,
    loop.TrainState.save.__code__: SAVING,
    loop.TrainState.save_model.__code__: FINISHING,
}


def moments(do: Callable[[], object], phase: str = "", die_at: int = 0) -> Counter[str]:
    """Count calls and returns of functions, of Python and of C, in each phase of a run; dies at one of them."""
    count: Counter[str] = Counter()
    inside = [LOADING]

    def look(frame: FrameType, event: str, _: object) -> None:
        if frame.f_code in CODE and event in ("call", "return"):
            inside.append(CODE[frame.f_code]) if event == "call" else inside.pop()
        count[inside[-1]] += 1
        if inside[-1] == phase and count[phase] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(look)
    try:
        do()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.slow  # test_resume.py kills at five chosen moments
def test_killed_run_resumes_bitwise(tiny: Recipe, tmp_path: Path) -> None:
    """Moments are drawn alike from loading, from two steps and from saving twice; the last two from finishing."""
    kills = 20
    long, whole, out = changed(tiny, steps=kills, save_every=2), tmp_path / "whole", tmp_path / "out"
    loop.train((long,), whole)
    count = moments(lambda: loop.train((long,), tmp_path / "measured"))
    two_steps = {STEPPING: count[STEPPING] * 2 // kills, SAVING: count[SAVING] * 4 // kills}
    phases = [*islice(cycle((LOADING, STEPPING, SAVING)), kills - 2), FINISHING, FINISHING]
    random, left = Random(kills), 0
    for phase in phases:
        is_finished = (out / "final" / "config.json").exists()  # nothing is left but the model card
        die_at = random.randint(1, two_steps.get(phase, count[phase]))
        code = in_a_process(lambda phase=phase, at=die_at: moments(lambda: loop.train((long,), out), phase, at))
        expected = 0 if is_finished else -signal.SIGKILL
        assert code == expected, f"killed at moment {die_at} of {phase}, but the process ended with {code}"
        left += any(out.rglob("*.partial"))
    assert left > 0  # it has died in the middle of writing
    loop.train((long,), out)
    assert lines(out) == lines(whole)
    expected = weights(whole)
    assert [name for name, tensor in weights(out).items() if not torch.equal(tensor, expected[name])] == []
    assert not any(out.rglob("*.partial"))
