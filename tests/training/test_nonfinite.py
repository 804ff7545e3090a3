"""A loss that is no number stops the run or costs one step, and its samples are on record either way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from many import start
from tiny import changed, lines, weights
from torch import Tensor

from dualfuse import distributed as dist
from dualfuse.data.sampler import MixtureSampler
from dualfuse.recipe import Recipe
from dualfuse.tasks.pretrain.pairs import Pairs
from dualfuse.training import loop
from dualfuse.training.checkpoint import latest

Backward = Callable[..., object]


def ledger(out: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["key"]) for line in map(json.loads, (out / "skipped.jsonl").read_text().splitlines())]


def of_step(step: int) -> list[tuple[int, str]]:
    """The eight samples of a step, counted from 1, as the order alone says."""
    return [
        (step, f"train-00000/{draw.index:03d}") for draw in MixtureSampler((40,), batch_size=8, seed=1).draws(step - 1)
    ]


@pytest.fixture
def ruin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the loss, or the gradient alone, of some steps (counted from 1) no number."""

    def ruin(*steps: int, loss: float = float("nan")) -> None:
        seed_step, forward, now = loop.seed_step, Pairs.forward, [0]

        def seed(run: object, step: int, micro: int) -> None:
            now[0] = step + 1
            seed_step(run, step, micro)  # type: ignore[arg-type]

        def ruined(task: Pairs, batch: object) -> object:
            output = forward(task, batch)  # type: ignore[arg-type]
            if now[0] not in steps:
                return output
            if loss == 0:
                return type(output)(output.loss * 1.0 + hooked(output.loss), output.log)
            return type(output)(output.loss * loss, {**output.log, "loss": output.loss.detach() * loss})

        monkeypatch.setattr(loop, "seed_step", seed)
        monkeypatch.setattr(Pairs, "forward", ruined)

    return ruin


def hooked(loss: Tensor) -> Tensor:
    """Return 0, with a gradient that is infinite."""
    zero = (loss * 0.0).requires_grad_()
    zero.register_hook(lambda gradient: gradient * float("inf"))
    return zero


@pytest.mark.parametrize(("loss", "every"), [(float("nan"), 1), (float("inf"), 4), (0.0, 1)])
def test_stop(tiny: Recipe, tmp_path: Path, ruin: Callable[..., None], loss: float, every: int) -> None:
    """Told at the next line of the log, before anything is saved; and again after a resume."""
    ruin(7, loss=loss)
    recipe = changed(tiny, log_every=every)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"of step 7 is not finite. It had the samples train-00000/\d+, ") as told:
            loop.train((recipe,), tmp_path)
        assert "run the same command with --run.on-nonfinite skip" in str(told.value)
        assert ledger(tmp_path) == of_step(7)
        assert latest(tmp_path / "checkpoints").name == "step-00000005"  # type: ignore[union-attr]
    assert lines(tmp_path)[-1]["step"] == (7 if every == 1 else 8)
    loop.train((changed(recipe, on_nonfinite="skip"),), tmp_path)  # the advice can be followed
    assert ledger(tmp_path) == of_step(7)


def test_skip(tiny: Recipe, tmp_path: Path, ruin: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the optimiser had slept for that step; the same wherever the run is stopped."""
    skip = changed(tiny, on_nonfinite="skip")
    ruin(3, 7)
    loop.train((skip,), tmp_path / "out")
    assert ledger(tmp_path / "out") == of_step(3) + of_step(7)
    found = {line["step"]: line.get("count/steps_skipped", 0) for line in lines(tmp_path / "out")}
    assert [found[step] for step in (2, 3, 6, 7, 10)] == [0, 1, 1, 2, 2]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out").values())

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", asleep(torch.optim.AdamW.step, 3, 7))
        patch.setattr(Pairs, "forward", FORWARD)
        loop.train((tiny,), tmp_path / "asleep")
    expected = weights(tmp_path / "asleep")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "out").items())

    stopped = changed(skip, save_every=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "accumulate", dies(loop.accumulate, after=8))
        loop.train((stopped,), tmp_path / "stopped")
    loop.train((stopped,), tmp_path / "stopped")
    assert lines(tmp_path / "stopped") == lines(tmp_path / "out")
    assert ledger(tmp_path / "stopped") == ledger(tmp_path / "out")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "stopped").items())


FORWARD = Pairs.forward


def asleep(step: Backward, *calls: int) -> Backward:
    count = iter(range(1, 100))
    return lambda *arguments: None if next(count) in calls else step(*arguments)


def dies(accumulate: Backward, after: int) -> Backward:
    count = iter(range(100))

    def once(*arguments: object) -> object:
        if next(count) == after:
            raise KeyboardInterrupt
        return accumulate(*arguments)

    return once


def test_rules_agree_without_nonfinite_steps(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    loop.train((changed(tiny, on_nonfinite="skip"),), tmp_path)
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path).items())
    assert lines(tmp_path) == lines(whole)


def test_too_many_skipped_steps_stop_the_run(tiny: Recipe, tmp_path: Path, ruin: Callable[..., None]) -> None:
    """Nine in a row may be an accident."""
    long = changed(tiny, steps=25, on_nonfinite="skip", save_every=100)
    ruin(*range(2, 11), *range(12, 22))
    with pytest.raises(ValueError, match=r"of 10 consecutive steps, up to step 21, is not finite; the last"):
        loop.train((long,), tmp_path)
    assert ledger(tmp_path)[-8:] == of_step(21)


@pytest.mark.parametrize(("rule", "codes"), [("stop", [1, 1]), ("skip", [0, 0])])
def test_processes_agree(
    tiny: Recipe, tmp_path: Path, rule: str, codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though only the second one sees it: here its loss is told as no number, and the gradient is one."""
    monkeypatch.setattr(Pairs, "forward", told_as_nan(Pairs.forward, step=3))
    two = changed(tiny, steps=4, log_every=2, on_nonfinite=rule, drop_path=0.0)
    assert start(2, lambda: print(loop.train((two,), tmp_path))) == codes
    skipped = ledger(tmp_path) + ledger(tmp_path / "rank-1")
    assert skipped == of_step(3)  # four of one process, four of the other
    assert (latest(tmp_path / "checkpoints") is None) == (rule == "stop")


def told_as_nan(forward: Backward, step: int) -> Backward:
    calls = iter(range(100))  # the first one, before the steps, sees what the loss depends on

    def told(task: Pairs, batch: object) -> object:
        output = forward(task, batch)
        if next(calls) == step and dist.rank() == 1:
            return type(output)(output.loss, {**output.log, "loss": output.loss.detach() * float("nan")})
        return output

    return told
