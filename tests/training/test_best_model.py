"""The best model by validation is kept, whatever came after it and however often the run was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from many import start
from safetensors.torch import load_file
from tiny import at_step, changed, interrupt, lines, shards

from dualfuse import hub
from dualfuse.data.shards.shards import Shards
from dualfuse.evaluation.retrieval import evaluate_retrieval
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.recipe import Recipe
from dualfuse.training import checkpoint, loop
from dualfuse.training.best_model import BestModel, headline

BY = "*/R@*"


@pytest.fixture(scope="module")
def evaluated(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Judged after each of eight steps, all of which are kept; with this seed the third is the best."""
    made = changed(tiny, steps=8, eval_every=1, save_every=1, keep_last=9, best=BY, seed=4)
    return replace(made, data=replace(made.data, validation=shards(tmp_path_factory.mktemp("validation"), 12)))


@pytest.fixture(scope="module")
def straight(evaluated: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stopped."""
    out = tmp_path_factory.mktemp("straight")
    loop.train((evaluated,), out)
    return out


def best_of_log(out: Path) -> tuple[int, float]:
    """Return the first of the best steps, and its mean over what the log says."""
    said = [line for line in lines(out) if any(name.startswith("validation/") for name in line)]
    means = {
        int(line["step"]): sum(numbers) / len(numbers)
        for line in said
        if (numbers := [value for name, value in line.items() if name.startswith("validation/") and "R@" in name])
    }
    step = max(means, key=lambda step: (means[step], -step))
    return step, means[step]


def assert_best(out: Path) -> int:
    step, _ = best_of_log(out)
    expected = load_file(out / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
    kept = load_file(out / "best" / "model.safetensors")
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    return step


def test_best_model_has_the_weights_of_the_best_step(evaluated: Recipe, straight: Path) -> None:
    assert 1 < assert_best(straight) < 8  # else keeping the first or the last one would do
    model = hub.load(straight / "best")
    found = evaluate_retrieval(
        model.task, EvaluationData(Shards.open(evaluated.data.validation), model.processor), Plan(num_workers=0)
    ).metrics
    assert sum(found.values()) / 6 == pytest.approx(best_of_log(straight)[1])
    assert (straight / "best" / "README.md").is_file()


@pytest.mark.parametrize("stop", [2, 5])
def test_resume_keeps_the_same_best_model(
    evaluated: Recipe, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    out, seldom = (
        tmp_path / "out",
        changed(evaluated, save_every=3),
    )  # what was judged since the last one is judged again
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "seed_step", at_step(stop, interrupt))
        loop.train((seldom,), out)
    loop.train((seldom,), out)
    whole = load_file(straight / "best" / "model.safetensors")
    assert all(
        torch.equal(tensor, whole[name]) for name, tensor in load_file(out / "best" / "model.safetensors").items()
    )
    newest = checkpoint.latest(out / "checkpoints")
    assert newest
    extra = json.loads((newest / "state.json").read_text())["extra"]
    assert (extra["best"]["step"], extra["best"]["value"]) == pytest.approx(best_of_log(straight))


def test_two_processes_agree(evaluated: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert start(2, lambda: print(loop.train((changed(evaluated, steps=3),), out))) == [0, 0]
    step = assert_best(out)
    assert capfd.readouterr().err.count(f"step {step} is the best so far: */R@* 0.") == 1


def test_without_run_best_only_the_final_model_is_saved(evaluated: Recipe, tmp_path: Path) -> None:
    loop.train((changed(evaluated, best="", steps=2),), tmp_path / "out")
    assert not (tmp_path / "out" / "best").exists()


def test_unknown_metric_is_refused_and_a_known_one_resumes(evaluated: Recipe, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"run\.best is 'acc', but the validation metrics are text_to_image/R@1, .*\*/R@\*"
    ):
        loop.train((changed(evaluated, best="acc", steps=2),), tmp_path / "out")
    loop.train((changed(evaluated, steps=2),), tmp_path / "out")
    assert_best(tmp_path / "out")


def test_better_depends_on_the_metric() -> None:
    first = BestModel("accuracy").after({"accuracy": 0.5}, 10)
    assert first == BestModel("accuracy", 0.5, 10)
    assert first.after({"accuracy": 0.5}, 20) is first and first.after({"accuracy": 0.4}, 20) is first
    assert first.after({"accuracy": float("nan")}, 20) is first
    assert first.after({"accuracy": 0.6, "accuracy/no": 0.0}, 20) == BestModel("accuracy", 0.6, 20)
    least = BestModel("loss").after({"loss": 2.0}, 1)
    assert least.after({"loss": 3.0}, 2) is least and least.after({"loss": 1.0}, 2).step == 2
    assert headline({"a/R@1": 0.2, "b/R@1": 0.4, "loss": 9.0}, "*/R@1") == pytest.approx(0.3)


def test_best_step_is_restored_from_a_checkpoint() -> None:
    best = BestModel("accuracy", 0.1 + 0.2, 3)
    extra = json.loads(json.dumps(best.extra()))
    assert BestModel.restored("accuracy", extra) == best
    assert BestModel.restored("loss", extra) == BestModel("loss") == BestModel.restored("loss", {})
    assert BestModel("loss").extra() == {}
