"""A run ends with the same weights wherever and however it was stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import at_step, changed, interrupt, lines, weights
from torch import Tensor

from dualfuse.recipe import Recipe
from dualfuse.training import checkpoint, loop
from dualfuse.training.signals import stop_requested


def assert_same_run(out: Path, whole: Path) -> None:
    """Bitwise the same weights, and the same losses: so also the same data in the same order."""
    assert lines(out) == lines(whole)
    expected = weights(whole)
    assert weights(out).keys() == expected.keys()
    assert [name for name, tensor in weights(out).items() if not torch.equal(tensor, expected[name])] == []


@pytest.mark.parametrize("workers", [0, 1])
def test_stopped_in_the_middle(
    tiny: Recipe, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    again = changed(tiny, num_workers=workers)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "seed_step", at_step(7, interrupt))
        loop.train((again,), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 8))
    torch.manual_seed(99)  # what happened before does not matter
    loop.train((again,), tmp_path)
    assert_same_run(tmp_path, whole)


def test_another_seed_is_another_run(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    loop.train((changed(tiny, seed=2),), tmp_path)
    assert not set(map(str, lines(whole))) & set(map(str, lines(tmp_path)))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step_7() -> None:
    loop.seed_step = at_step(7, kill)


def kill_after_the_checkpoint() -> None:
    save = checkpoint.save

    def save_and_die(*arguments: object) -> Path:
        save(*arguments)  # type: ignore[arg-type]
        kill()
        raise AssertionError

    loop.checkpoint.save = save_and_die


def kill_while_writing(times: int) -> None:
    """Dies when half of the n-th file of tensors is written: two per checkpoint, one for the final model."""
    save_file, count = safetensors.torch.save_file, iter(range(1, times + 1))

    def half(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None) -> None:
        save_file(tensors, path, metadata)
        if next(count) == times:
            os.truncate(path, path.stat().st_size // 2)
            kill()

    safetensors.torch.save_file = half


def in_a_process(tiny: Recipe, out: Path, prepare: Callable[..., None], *arguments: int) -> int | None:
    """Train in another process after ``prepare``, which may break it; gives the exit code."""

    def run() -> None:
        prepare(*arguments)
        loop.train((tiny,), out)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize(
    ("step", "prepare"),
    [
        (5, (kill_in_step_7,)),
        (5, (kill_after_the_checkpoint,)),
        (0, (kill_while_writing, 1)),
        (5, (kill_while_writing, 4)),
        (10, (kill_while_writing, 5)),
    ],
    ids=["between checkpoints", "after a checkpoint", "in the first", "in the last", "in the final model"],
)
def test_killed(tiny: Recipe, whole: Path, tmp_path: Path, step: int, prepare: tuple) -> None:
    assert in_a_process(tiny, tmp_path, *prepare) == -signal.SIGKILL
    newest = checkpoint.latest(tmp_path / "checkpoints")
    assert (int(newest.name.removeprefix("step-")) if newest else 0) == step
    assert not (tmp_path / "final").exists()
    loop.train((tiny,), tmp_path)
    assert_same_run(tmp_path, whole)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_after_a_checkpoint(
    tiny: Recipe, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Between two lines of the log, so that the counts of the last steps could be lost."""
    seldom = changed(tiny, log_every=4, save_every=100)
    with monkeypatch.context() as patch, pytest.raises(loop.Interrupted, match="stopped after step 7; run the same"):
        patch.setattr(loop, "seed_step", at_step(6, lambda: os.kill(os.getpid(), number)))
        loop.train((seldom,), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [4]
    assert checkpoint.latest(tmp_path / "checkpoints").name == "step-00000007"  # type: ignore[union-attr]
    loop.train((seldom,), tmp_path)
    assert [(line["step"], line["count/samples"]) for line in lines(tmp_path)] == [(4, 32), (8, 64), (10, 80)]
    avoided = [line["count/false_negatives_avoided"] for line in (lines(tmp_path)[-1], lines(whole)[-1])]
    assert avoided[0] == avoided[1] > 0
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path).items())


def test_counts_survive_a_kill_between_two_lines(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    seldom = changed(tiny, log_every=4)
    assert in_a_process(seldom, tmp_path, kill_in_step_7) == -signal.SIGKILL
    loop.train((seldom,), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [4, 8, 10]
    counts = [{name: n for name, n in line.items() if name.startswith("count/")} for line in lines(tmp_path)]
    by_step = {line["step"]: line for line in lines(whole)}
    for line, count in zip(lines(tmp_path), counts, strict=True):
        assert count == {name: by_step[line["step"]][name] for name in count}


def test_second_signal_interrupts_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_requested() as stop:
        assert not stop.signal_number
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # the same one once more, passed on by torchrun
        assert stop.signal_number
        stop.since -= 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
