"""The best model by validation is kept, whatever came after it and however often the run was stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from many import start
from safetensors.torch import load_file
from tiny import at_step, changed, interrupt, lines, shards
from torch import Tensor, nn

from dualfuse import hub
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.retrieval import evaluate_retrieval
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.metrics.base import MetricInfo
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Task, TaskConfig, TaskOutput, detached
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig
from dualfuse.training import checkpoint, loop
from dualfuse.training.best_model import BestModel, check_best, headline, new_comparison

BY = "*/R@*"


@dataclass(frozen=True)
class BrightnessConfig(TaskConfig):
    """Regression of the brightness of images, evaluated as tasks are by default."""

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        lower = (MetricInfo(name, "units", higher_is_better=False) for name in ("loss", "mae"))
        return (*lower, MetricInfo("spread", whole_set=True))

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> dict[str, Any]:
        return {"image": processor.image(sample.image, rng)}

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        return {"image": torch.stack([example["image"] for example in examples])}

    def build(self, model: Any) -> Brightness:
        return Brightness(self, model)


class Brightness(Task):
    def __init__(self, cfg: BrightnessConfig, model: Any) -> None:
        super().__init__()
        self.cfg, self.model, self.head = cfg, model, nn.Linear(model.width, 1)

    def forward(self, batch: Any) -> TaskOutput:
        images = batch["image"]
        assert batch.keys() == {"image"}
        errors = (self.head(self.model.encode(self.model.embed_image(images)))[:, 0] - images.mean((1, 2, 3))).abs()
        log = {"loss": errors.square().mean(), "mae": errors.mean(), "spread": errors.max()}
        return TaskOutput(log["loss"], detached(log))


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
    note = json.loads((straight / "best" / "best.json").read_text())
    assert (note["step"], note["value"]) == pytest.approx(best_of_log(straight)) and note["metrics"] == found
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


def test_run_ends_after_evaluations_that_are_not_better(
    evaluated: Recipe, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two evaluations after the best step of the whole run; stopped and resumed, with fewer checkpoints, the same."""
    best, _ = best_of_log(straight)
    recipe = changed(evaluated, early_stopping=2, save_every=5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "seed_step", at_step(best, interrupt))
        loop.train((recipe,), tmp_path)
    loop.train((recipe,), tmp_path)
    expected = load_file(straight / "checkpoints" / f"step-{best + 2:08d}" / "model.safetensors")
    final = load_file(tmp_path / "final" / "model.safetensors")
    assert all(torch.equal(tensor, final[name]) for name, tensor in expected.items())
    assert json.loads((tmp_path / "final" / "step.json").read_text()) == {"step": best + 2}
    assert checkpoint.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / f"step-{best + 2:08d}"
    kept = load_file(tmp_path / "best" / "model.safetensors")
    assert all(
        torch.equal(kept[name], tensor) for name, tensor in load_file(straight / "best/model.safetensors").items()
    )
    before = (tmp_path / "final" / "model.safetensors").stat().st_mtime_ns
    loop.train((recipe,), tmp_path)  # finished
    assert (tmp_path / "final" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("changes", [{"best": ""}, {"eval_every": 0}])
def test_early_stopping_needs_evaluations(evaluated: Recipe, changes: dict[str, Any]) -> None:
    with pytest.raises(DualfuseError, match=r"early_stopping is 2.*--run.early-stopping 0"):
        check_best(changed(evaluated, early_stopping=2, **changes))


def test_without_run_best_only_the_final_model_is_saved(evaluated: Recipe, tmp_path: Path) -> None:
    loop.train((changed(evaluated, best="", steps=2),), tmp_path / "out")
    assert not (tmp_path / "out" / "best").exists()


def test_unknown_metrics_are_refused_before_the_first_step(evaluated: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DualfuseError, match=r"run\.best is 'acc', but the validation metrics are text_to_image/R@1, "):
        loop.train((changed(evaluated, best="acc"),), tmp_path)
    with pytest.raises(DualfuseError, match=r"did you mean text_to_image/R@1\?"):
        loop.train((changed(evaluated, best="text-to-image/R@1"),), tmp_path)
    with pytest.raises(DualfuseError, match=r"'\*/reranked/R@1', but"):  # eval_rerank is 0
        loop.train((changed(evaluated, best="*/reranked/R@1"),), tmp_path)
    with pytest.raises(DualfuseError, match=r"no validation set .* --data\.validation"):
        loop.train((changed(evaluated, validation=""),), tmp_path)
    assert not list(tmp_path.glob("**/log.jsonl"))


def test_direction_is_that_of_the_declaration(evaluated: Recipe, tmp_path: Path) -> None:
    assert check_best(evaluated)
    text = replace(evaluated, task=MaskedTextConfig())
    assert check_best(changed(text, best="mlm/accuracy")) and not check_best(changed(text, best="mlm/loss"))
    with pytest.raises(DualfuseError, match="some are better if higher"):
        check_best(changed(text, best="mlm/*"))


def test_third_party_metric_to_minimize(evaluated: Recipe, tmp_path: Path) -> None:
    low = replace(changed(evaluated, best="mae", steps=3), task=BrightnessConfig())
    loop.train((low,), tmp_path)
    steps = {line["step"]: line["validation/mae"] for line in lines(tmp_path) if "validation/mae" in line}
    note = json.loads((tmp_path / "best" / "best.json").read_text())
    assert note["value"] == min(steps.values()) == steps[note["step"]] and note["metric"] == "mae"
    assert max(steps.values()) > note["value"]


def test_values_are_means_over_samples_and_whole_set_metrics_are_omitted(evaluated: Recipe, tmp_path: Path) -> None:
    cfg = BrightnessConfig()
    task = cfg.build(evaluated.model.build()).eval()
    data = EvaluationData(Shards.open(shards(tmp_path, 7)), evaluated.data.processor())
    metrics = [task.evaluate(data, Plan(batch_size=size, num_workers=0)).metrics for size in (3, 7)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)
    assert metrics[0].keys() == {"loss", "mae"}


def test_another_validation_set_starts_a_new_comparison(
    evaluated: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = changed(evaluated, steps=2)
    sets = {name: Shards.open(shards(tmp_path / name, number)) for name, number in (("a", 5), ("same", 5), ("b", 6))}
    best = {name: new_comparison(short, (opened,)) for name, opened in sets.items()}
    extra = best["a"].after({"x/R@1": 0.5}, 3).extra()
    assert best["same"].restored(extra).value == 0.5  # moved, but equal
    assert best["b"].restored(extra).value is None
    assert new_comparison(changed(short, eval_rerank=4), (sets["a"],)).restored(extra).value is None


def test_better_depends_on_the_metric() -> None:
    first = BestModel("accuracy").after({"accuracy": 0.5}, 10)
    assert first == BestModel("accuracy", 0.5, 10)
    assert first.after({"accuracy": 0.5}, 20) is first and first.after({"accuracy": 0.4}, 20) is first
    assert first.after({"accuracy": float("nan")}, 20) is first
    assert first.after({"accuracy": 0.6, "accuracy/no": 0.0}, 20) == BestModel("accuracy", 0.6, 20)
    least = BestModel("mae", higher_is_better=False).after({"mae": 2.0}, 1)
    assert least.after({"mae": 3.0}, 2) is least and least.after({"mae": 1.0}, 2).step == 2
    assert headline({"a/R@1": 0.2, "b/R@1": 0.4, "loss": 9.0}, "*/R@1") == pytest.approx(0.3)


def test_patterns_of_recall_do_not_mix_what_is_re_ranked_with_what_is_not(evaluated: Recipe) -> None:
    metrics = {"text_to_image/R@1": 0.2, "image_to_text/R@1": 0.4, "loss": 9.0, "accuracy/yes/no": 0.8}
    metrics |= {f"{name}/reranked/R@1": value for name, value in (("text_to_image", 0.6), ("image_to_text", 0.7))}
    patterns = {"*/R@*": 0.3, "*/reranked/R@*": 0.65, "text_to_image/R@1": 0.2, "accuracy/*": 0.8}
    assert {pattern: headline(metrics, pattern) for pattern in patterns} == pytest.approx(patterns)
    both = changed(evaluated, eval_rerank=4)
    assert check_best(changed(both, best="*/R@*")) and check_best(changed(both, best="*/reranked/R@*"))
    for pattern in ("text_to_image/*", "*"):
        with pytest.raises(DualfuseError, match=r"matches metrics of different kinds: text_to_image/R@1, "):
            check_best(changed(both, best=pattern))
    assert check_best(changed(evaluated, best="text_to_image/*"))  # nothing is re-ranked


def test_best_step_is_restored_from_a_checkpoint() -> None:
    best = BestModel("accuracy", 0.1 + 0.2, 3)
    extra = json.loads(json.dumps(best.extra()))
    assert BestModel("accuracy").restored(extra) == best
    assert BestModel("loss").restored(extra) == BestModel("loss") == BestModel("loss").restored({})
    assert BestModel("loss").extra() == {}
