"""A stopped run leaves a usable model, and its steps may be raised and lowered."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from many import start
from safetensors.torch import load_file
from tiny import at_step, changed, lines, weights

from dualfuse import hub
from dualfuse.checksums import unwritten_files
from dualfuse.errors import DualfuseError
from dualfuse.export.export import export
from dualfuse.recipe import Recipe
from dualfuse.run_folder import model_of
from dualfuse.training import loop


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def stop(recipe: Recipe, out: Path, step: int = 7) -> str:
    """Train until SIGTERM in ``step`` (1-based), and return the message."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(loop.Interrupted) as end:
        patch.setattr(loop, "seed_step", at_step(step - 1, terminate))
        loop.train((recipe,), out)
    return str(end.value)


def same(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / hub.WEIGHTS) for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_last_is_a_complete_model_that_the_final_one_supersedes(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    message = stop(tiny, out)
    assert message.startswith("stopped after step 7; run the same command to resume.")
    assert f"dualfuse evaluate {out / 'last'} DATA" in message
    assert names(out / "last") == names(whole / "final") and not unwritten_files(out / "last")
    assert json.loads((out / "last" / "step.json").read_text()) == {"step": 7}
    assert "7 of 10" in (out / "last" / "README.md").read_text()
    assert same(out / "last", out / "checkpoints" / "step-00000007")
    hub.load(out / "last")
    assert model_of(out) == out / "last"
    loop.train((tiny,), out)
    assert not (out / "last").exists() and same(out / "final", whole / "final")
    assert model_of(out) == out / "final"


def test_files_of_the_user_in_last_are_kept(tiny: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    (out / "last").mkdir(parents=True)
    (out / "last" / "notes.txt").write_text("mine")
    message = stop(tiny, out)
    assert "was not written" in message and f"dualfuse export {out}" in message
    loop.train((tiny,), out)
    assert names(out / "last") == {"notes.txt"} and "is kept" in caplog.text


def test_full_disk_costs_the_last_model_only(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = hub.save

    def full(folder: Path, *arguments: object) -> Path:
        if folder.name == "last":
            raise OSError(28, "No space left on device", str(folder))
        return save(folder, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(hub, "save", full)
    assert "No space left" in stop(tiny, tmp_path)
    assert names(tmp_path / "checkpoints") == {"step-00000005", "step-00000007"}


@pytest.mark.slow
def test_two_sharded_processes_leave_gathered_weights(tiny: Recipe, tmp_path: Path) -> None:
    """And the sharded checkpoint is a model for evaluation, export and a new start on one process."""
    sharded, out = changed(tiny, fsdp=True), tmp_path / "out"

    def work() -> None:
        stop(sharded, out)

    assert start(2, work) == [0, 0]
    checkpoint = out / "checkpoints" / "step-00000007"
    assert (checkpoint / "shards").is_dir()
    assert same(out / "last", export(checkpoint))
    loaded, last = (hub.load(folder).task.state_dict() for folder in (checkpoint, out / "last"))
    assert all(torch.equal(loaded[name], last[name]) for name in last)
    fresh = changed(tiny, steps=1, lr=0.0, start_from=str(checkpoint))
    loop.train((fresh,), tmp_path / "fresh")
    assert all(torch.equal(tensor, last[name]) for name, tensor in weights(tmp_path / "fresh").items())
    shard = next((checkpoint / "shards").glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DualfuseError, match=f"{shard} has another content"):
        hub.load(checkpoint)


def test_more_steps_continue_a_finished_run(
    tiny: Recipe, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dualfuse")
    constant = changed(tiny, schedule="constant", steps=6, save_every=3)
    loop.train((constant,), tmp_path)
    longer = changed(constant, steps=10)
    assert "stopped after step 8" in stop(longer, tmp_path, 8)
    with pytest.raises(DualfuseError, match=r"final, after 6 steps, and .*last, after 8"):
        model_of(tmp_path)
    loop.train((longer,), tmp_path)
    assert "run.steps was 6 and is 10: the learning rate follows the schedule of 10 steps" in caplog.text
    assert json.loads((tmp_path / "final" / "config.json").read_text())["run"]["steps"] == 10
    loop.train((changed(constant, steps=10),), tmp_path / "at once")
    assert lines(tmp_path) == lines(tmp_path / "at once")
    assert same(tmp_path / "final", tmp_path / "at once" / "final")
    with pytest.raises(DualfuseError, match=r"finished with run.steps 10.*dualfuse export"):
        loop.train((constant,), tmp_path)


def test_learning_rate_after_a_change_of_steps_is_that_of_the_new_length(
    tiny: Recipe, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Linear after two steps of warm-up: in 0-based step s of n it is lr (1 - (s - 2) / (n - 2))."""
    caplog.set_level(logging.INFO, "dualfuse")
    stop(tiny, tmp_path, 5)
    loop.train((changed(tiny, steps=20),), tmp_path)
    rates = [line["lr"] for line in lines(tmp_path)]
    assert rates[2:5] == pytest.approx([2e-3 * (1 - (step - 2) / 8) for step in range(2, 5)])
    assert rates[5:] == pytest.approx([2e-3 * (1 - (step - 2) / 18) for step in range(5, 20)])
    assert f"{rates[5]:.3g} in step 6 instead of {2e-3 * (1 - 3 / 8):.3g}" in caplog.text


def test_fewer_steps_end_at_the_newest_checkpoint_of_at_most_that_many(
    tiny: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dualfuse")
    stop(tiny, tmp_path)
    saved = names(tmp_path / "checkpoints")
    with pytest.raises(DualfuseError, match=r"run.steps is 4, but the oldest checkpoint .* step 5; give --run.steps 5"):
        loop.train((changed(tiny, steps=4),), tmp_path)
    loop.train((changed(tiny, steps=6),), tmp_path)
    assert "becomes the model of checkpoint step 5" in caplog.text
    assert same(tmp_path / "final", tmp_path / "checkpoints" / "step-00000005")
    assert "5 of 6" in (tmp_path / "final" / "README.md").read_text()
    assert names(tmp_path / "checkpoints") == saved and len(lines(tmp_path)) == 7
    loop.train((changed(tiny, steps=6),), tmp_path)
    assert "already finished" in caplog.text
    loop.train((tiny,), tmp_path)  # and it still can be trained to its end
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 11))


def test_stage_that_another_started_from_is_not_trained_further(tiny: Recipe, tmp_path: Path) -> None:
    first = changed(tiny, name="first", steps=2)
    second = changed(tiny, name="second", steps=1, start_from="first")
    loop.train((first, second), tmp_path)
    with pytest.raises(DualfuseError, match="first was finished before second started from it"):
        loop.train((changed(first, steps=3), second), tmp_path)


@pytest.mark.parametrize("name", ["log.jsonl", "provenance.json", "recipe.json", "start.json", "final"])
def test_files_that_no_run_wrote_are_not_replaced(tiny: Recipe, tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.write_text('{"step": 5}\n')
    with pytest.raises(DualfuseError, match=name):
        loop.train((tiny,), tmp_path)
    assert mine.read_text() == '{"step": 5}\n'


def test_training_in_another_thread(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    """Only the main thread can handle signals."""
    thread = threading.Thread(target=lambda: loop.train((changed(tiny),), tmp_path))
    thread.start()
    thread.join()
    assert same(tmp_path / "final", whole / "final")
