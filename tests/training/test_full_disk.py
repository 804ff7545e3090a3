"""A full disk while saving: earlier checkpoints stay whole, and the run says what it needed and what to do."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

import pytest
import torch
from forked import in_a_process
from tiny import at_step, changed, lines, weights

from dualfuse import hub
from dualfuse.cli import main as cli
from dualfuse.cli import train
from dualfuse.errors import DualfuseError
from dualfuse.recipe import Recipe
from dualfuse.training import checkpoint, loop


def limited(largest: int) -> None:
    """From here on no file of this process may be larger, in bytes: writing fails in the middle, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_while_saving(tiny: Recipe, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The weights still fit, the state of the optimiser does not."""
    seldom = changed(tiny, log_every=5)
    loop.train((changed(seldom, steps=5, schedule="constant", warmup=0),), tmp_path / "sizes")
    sizes = files(checkpoint.latest(tmp_path / "sizes" / "checkpoints"))  # type: ignore[arg-type]
    largest = (len(sizes["model.safetensors"]) + len(sizes["optimizer.safetensors"])) // 2
    folder = tmp_path / "out" / "checkpoints"

    def work() -> None:
        save = checkpoint.save

        def fills_up(at: Path, step: int, *rest: object) -> Path:
            if step == 10:
                limited(largest)
            return save(at, step, *rest)  # type: ignore[arg-type]

        loop.checkpoint.save = fills_up
        loop.train((seldom,), tmp_path / "out")

    assert in_a_process(work) == 1
    said = capfd.readouterr().err
    assert f"{folder / 'step-00000010.partial'} could not be written (" in said and "File too large" in said
    needed = sum(map(len, sizes.values())) // 1000
    (took,) = re.findall(r"; it takes (\d+) KB, and [\d,.]+ [KMG]B are free there\. ", said)
    assert needed * 0.8 < int(took) <= needed
    assert "Earlier checkpoints are intact. Make room for run.keep_last + 1 checkpoints" in said
    assert [path.name for path in folder.iterdir()] == ["step-00000005"]
    loop.train((seldom,), tmp_path / "out")
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "out").items())


def test_full_disk_keeps_the_earlier_final_model(
    tiny: Recipe, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What was there before stays; neither half of a new one is left."""
    model, loaded = hub.save(tmp_path / "model", hub.load(whole / "final").task, tiny), hub.load(whole / "final")
    before = files(model)

    def work() -> None:
        limited(10_000)
        hub.save(model, loaded.task, changed(tiny, name="another"))

    assert in_a_process(work) == 1
    assert "model.partial could not be written" in (said := capfd.readouterr().err)
    assert "free some space and give the same command again" in said
    assert files(model) == before and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_log(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    """A line that does not fit is removed again."""
    out = tmp_path / "out"

    def work() -> None:
        loop.seed_step = at_step(3, lambda: limited((out / "log.jsonl").stat().st_size + 20))
        with pytest.raises(OSError, match=r"File too large: '.*/out/log\.jsonl'"):  # what is printed is a file, too
            loop.train((tiny,), out)

    assert in_a_process(work) == 0
    assert [line["step"] for line in lines(out)] == [1, 2, 3]  # the fourth is removed again
    loop.train((tiny,), out)
    assert lines(out) == lines(whole)


def test_the_command_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit status is that of a failure, and there is a sentence instead of a traceback."""
    monkeypatch.chdir(Path(__file__).parents[2])
    out = tmp_path / "out"

    def work() -> None:
        limited(1000)
        os._exit(cli.main(["train", "ten-seconds", "--out", str(out), "--run.steps", "2"]))

    assert in_a_process(work) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"dualfuse train: {out / 'recipe.json'}: File too large; free some disk space")
    assert not out.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "x.tar.part"), DualfuseError("x")])
def test_advice_of_every_command(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        """Fail."""
        raise error

    monkeypatch.setattr(train, "run", fail)
    assert cli.main(["train"]) == 2
    said = capsys.readouterr().err
    assert ("x.tar.part: No space left on device; free some disk space" in said) == isinstance(error, OSError)
    assert said.endswith("\n") and said.count("\n") == 1
