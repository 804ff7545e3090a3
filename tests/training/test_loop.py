"""Training does what the recipe says, and says no at once to what would go wrong later."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file
from tiny import at_step, caption, changed, interrupt, lines, png_image, recipe, samples, weights
from torch import Tensor

from dualfuse import hub
from dualfuse.data.sample import Sample
from dualfuse.recipe import Recipe
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.training import loop


def test_run_folder_has_checkpoints_log_and_model(tiny: Recipe, whole: Path) -> None:
    said = lines(whole)
    assert [line["step"] for line in said] == list(range(1, 11))
    assert [line["count/samples"] for line in said] == list(range(8, 81, 8))
    assert len({line["loss"] for line in said}) == 10
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step-00000005", "step-00000010"]
    start = tiny.build().state_dict()
    assert weights(whole).keys() == start.keys()


def gradient(tiny: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> dict[str, Tensor]:
    """Return the gradient of the first step."""
    found: dict[str, Tensor] = {}

    def keep(task: torch.nn.Module, limit: float) -> Tensor:
        found.update({name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None})
        return torch.zeros(())

    monkeypatch.setattr(loop, "clip_grad_norm", keep)
    loop.train((changed(tiny, steps=1, **changes),), out)
    return found


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Every text has ten words, of which two are masked; nothing is random but what data and masks are."""
    content = [Sample(f"{n}", png_image(n), (caption(n, 10),)) for n in range(16)]
    made = recipe(tmp_path_factory.mktemp("even"), images=content)
    return changed(made, drop_path=0.0, itc_weight=0.0, itm_weight=0.0, mlm_probability=0.2)


def test_micro_batches_with_equal_token_counts_give_the_gradient_of_the_batch(
    even: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = gradient(even, tmp_path / "a", monkeypatch)
    in_parts = gradient(even, tmp_path / "b", monkeypatch, micro_batch=2)
    assert at_once.keys() == in_parts.keys() and len(at_once) > 20
    for name, value in at_once.items():
        torch.testing.assert_close(in_parts[name], value, atol=1e-6, rtol=1e-4)
    assert lines(tmp_path / "a")[0]["loss/mlm"] == pytest.approx(lines(tmp_path / "b")[0]["loss/mlm"], abs=1e-5)


def test_step_is_the_mean_of_its_micro_batches(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they have different numbers of words: each stands for itself."""
    passes: list[dict[str, Tensor]] = []
    accumulate, steps = loop.accumulate, loop.micro_steps

    def apart(state: loop.TrainState, *rest: object) -> object:
        before = {name: p.grad.clone() for name, p in state.task.named_parameters() if p.grad is not None}
        log = accumulate(state, *rest)  # type: ignore[arg-type]
        after = {name: p.grad for name, p in state.task.named_parameters() if p.grad is not None}
        passes.append({name: grad - before.get(name, 0) for name, grad in after.items()})
        return log

    monkeypatch.setattr(loop, "accumulate", apart)
    gradient(tiny, tmp_path / "a", monkeypatch, micro_batch=4)
    halves = list(passes)
    monkeypatch.setattr(loop, "micro_steps", lambda recipe: 1 if recipe.run.micro_batch == 4 else steps(recipe))
    passes.clear()
    alone = gradient(tiny, tmp_path / "b", monkeypatch, micro_batch=4)  # the first half only, with its full weight
    for name, value in alone.items():
        torch.testing.assert_close(2 * halves[0][name], value, atol=1e-6, rtol=1e-5)
    assert len(halves) == 2


def test_unused_parameters_are_frozen_for_every_loss_weighting(
    tiny: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def unmoved(name: str, cfg: PairsConfig, **model: object) -> set[str]:
        made = changed(replace(tiny, task=cfg), steps=1, warmup=0, weight_decay=0.5, **model)
        loop.train((made,), tmp_path / name)
        torch.manual_seed(made.run.seed)
        start = made.build().state_dict()
        end = weights(tmp_path / name)
        return {name for name, tensor in start.items() if torch.equal(tensor, end[name])}

    def only(names: set[str], *parts: str) -> bool:
        """Whether every name contains a part, and every part a name."""
        covered = all(any(part in name for part in parts) for name in names)
        return covered and all(any(part in name for name in names) for part in parts)

    assert unmoved("all", PairsConfig()) == set()
    assert "frozen, because" not in caplog.text
    contrast = unmoved("contrast", PairsConfig(itm_weight=0.0, mlm_weight=0.0))
    assert only(contrast, "itm_head.", "mlm_head.", "pooler.")
    assert "frozen, because the loss does not depend on them: model.pooler.weight" in caplog.text
    plain = unmoved("plain", PairsConfig(itm_weight=0.0, mlm_weight=0.0, itc_features="unimodal"))
    assert only(plain, "itm_head.", "mlm_head.", "pooler.", "blocks.1.experts.vl.")
    match = unmoved("match", PairsConfig(itc_weight=0.0, mlm_weight=0.0))
    assert only(match, "mlm_head.", "itc_heads.", "blocks.1.experts.image.", "blocks.1.experts.text.")
    words = unmoved("words", PairsConfig(itc_weight=0.0, itm_weight=0.0))
    assert only(words, "itm_head.", "pooler.", "itc_heads.", "blocks.1.experts.image.", "blocks.1.experts.text.")
    with pytest.raises(ValueError, match="depends on no trainable parameter"):
        unmoved("none", PairsConfig(itc_weight=0.0, itm_weight=0.0, mlm_weight=0.0))


def test_train_only(tiny: Recipe, tmp_path: Path) -> None:
    some = changed(tiny, steps=2, warmup=0, train_only=("*.experts.text.*", "model.words.*"))
    loop.train((some,), tmp_path)
    torch.manual_seed(some.run.seed)
    start = some.build().state_dict()
    moved = {name for name, tensor in weights(tmp_path).items() if not torch.equal(tensor, start[name])}
    assert {name.split(".")[1] for name in moved} == {"blocks", "words"}
    assert all("experts.text" in name or name.startswith("model.words.") for name in moved)
    with pytest.raises(ValueError, match=r"pattern '\*.expert.text.\*' of train_only matches no parameter"):
        loop.train((replace(some, train_only=("*.expert.text.*",)),), tmp_path / "typo")


def test_stages(
    tiny: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = changed(tiny, name="first", steps=2, itm_weight=0.0, mlm_weight=0.0)
    second = changed(tiny, name="second", steps=2, start_from="first", text_length=10)  # fewer rows in the bias table
    assert loop.train((first, second), tmp_path) == tmp_path / "second" / "final"
    said = caplog.text
    number = len(weights(tmp_path / "second"))
    assert f"initialized {number} of {number} tensors from {tmp_path / 'first' / 'final'}" in said
    assert "resized: model.relative_bias.table" in said and "new:" not in said and "unused:" not in said

    again = replace(second, name="again", start_from=str(tmp_path / "first" / "final"))
    loop.train((again,), tmp_path / "again")
    expected = weights(tmp_path / "second")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "again").items())

    written = (tmp_path / "first" / "final" / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "first" / "final" / "config.json").touch()
    with monkeypatch.context() as patch:  # a finished stage reads nothing and runs nothing
        patch.setattr(loop, "fit", None)
        loop.train((first, second), tmp_path)
    assert "first: already finished, in" in caplog.text
    assert (tmp_path / "first" / "final" / "model.safetensors").stat().st_mtime_ns == written


def test_start_is_read_only_before_the_first_step(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on needs its checkpoint only: what it once started from may be gone."""
    first = changed(tiny, steps=1)
    loop.train((first,), tmp_path / "first")
    second = changed(tiny, name="second", start_from=str(tmp_path / "first" / "final"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "seed_step", at_step(6, interrupt))
        loop.train((second,), tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "gone")
    loop.train((second,), tmp_path / "second")
    with pytest.raises(ValueError, match=r"first/final does not exist"):
        loop.train((second,), tmp_path / "third")


def test_start_that_does_not_fit_is_refused(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    foreign = load_file(whole / "final" / "model.safetensors")
    folder = shutil.copytree(whole / "final", tmp_path / "foreign")
    safetensors.torch.save_file({f"module.{name}": tensor for name, tensor in foreign.items()}, folder / hub.WEIGHTS)
    (folder / "checksums.json").unlink()
    with pytest.raises(
        ValueError, match=r"no tensor in .*foreign fits this recipe's model.*the checkpoint has module\.itc_heads"
    ):
        loop.train((replace(tiny, start_from=str(folder)),), tmp_path / "out")


def test_another_recipe_in_the_same_folder_is_refused(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "seed_step", at_step(6, interrupt))
        loop.train((tiny,), tmp_path)
    other = changed(tiny, lr=1e-3, depth=3, itm_weight=0.5)
    expected = (
        rf"(?s)^{tmp_path} contains a run of another recipe:\n  model.depth was 2, is 3\n"
        r"  task.itm_weight was 1.0, is 0.5\n  optim.lr was 0.002, is 0.001\nGive the same settings"
    )
    for _ in range(2):  # unfinished, then finished
        with pytest.raises(ValueError, match=expected):
            loop.train((other,), tmp_path)
        loop.train((changed(tiny, num_workers=1, keep_last=1, log_every=5, save_every=2),), tmp_path)  # not another run
    recipe_file = tmp_path / "recipe.json"
    (tmp_path / "final" / "config.json").unlink()
    recipe_file.write_text("{")
    with pytest.raises(ValueError, match=r"recipe.json does not describe a recipe"):
        loop.train((tiny,), tmp_path)


def test_mistakes_are_refused_before_training(tiny: Recipe, tmp_path: Path) -> None:
    first = changed(tiny, name="first")

    def fails(match: str, **changes: object) -> None:
        second = changed(tiny, name="second", **changes)
        with pytest.raises(ValueError, match=match):
            loop.train((first, second), tmp_path)
        assert not (tmp_path / "first").exists()

    fails("no training data: give --data.train SHARDS", train=())
    fails("no tar file matches .*nowhere", train=(str(tmp_path / "nowhere"),))
    fails("no tar file matches .*nowhere", validation=str(tmp_path / "nowhere"))
    fails("a batch of 8 cannot be divided by 3 samples per micro-batch", micro_batch=3)
    with pytest.raises(ValueError, match=r"need different names, but are called \['first', 'first'\]"):
        loop.train((first, first), tmp_path)


def test_bf16(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    loop.train((changed(tiny, precision="bf16"),), tmp_path)
    half, full = ([line["loss"] for line in lines(out)] for out in (tmp_path, whole))
    assert half != full and np.allclose(half, full, rtol=0.05)
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


def test_validation(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    evaluated = changed(tiny, validation=tiny.data.train[0], eval_every=4)
    loop.train((evaluated,), tmp_path)
    name = "validation/text_to_image/R@10"
    found = {line["step"]: line[name] for line in lines(tmp_path) if name in line}
    assert list(found) == [4, 8, 10]
    assert all(0 < value < 1 for value in found.values())
    expected = weights(whole)  # looking changes nothing
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path).items())


def test_broken_samples_are_skipped_and_logged(tmp_path: Path) -> None:
    content = samples(12)
    content[3] = Sample("003", content[3].image[:90], content[3].texts)
    content[7] = Sample("007", content[7].image, ())
    broken = changed(recipe(tmp_path, images=content), steps=6, save_every=4, log_every=4)
    loop.train((broken,), tmp_path / "out")
    ledger = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert {(line["key"], line["replacement"]) for line in ledger} == {
        ("train-00000/003", "train-00000/004"),
        ("train-00000/007", "train-00000/008"),
    }
    assert {line["reason"] for line in ledger if line["key"].endswith("7")} == {"it has no text"}
    assert len(ledger) == 8  # 48 samples are four epochs of twelve
    assert [line["count/skipped"] for line in lines(tmp_path / "out")] == [
        sum(line["step"] <= 4 for line in ledger),
        8,
    ]


def test_weights_that_are_not_finite_are_never_saved(tiny: Recipe, tmp_path: Path) -> None:
    """A learning rate without bounds; what was saved before it stays."""
    ruined = changed(tiny, lr=1e39, warmup=0, grad_clip_norm=0.0, schedule="constant", save_every=1)
    with pytest.raises(ValueError, match=r"training has failed: after step 1 .* lower optim\.lr"):
        loop.train((ruined,), tmp_path)
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def test_validation_without_itc_evaluates_pairs(tiny: Recipe, tmp_path: Path) -> None:
    validation = tiny.data.train[0]
    loop.train((changed(tiny, itc_weight=0.0, steps=2, validation=validation, eval_rerank=4),), tmp_path / "out")
    last = lines(tmp_path / "out")[-1]
    evaluated = {name.removeprefix("validation/") for name in last if name.startswith("validation/")}
    assert evaluated == {"itm/positive", "itm/random_negative", "mlm/accuracy", "mlm/accuracy_other_image"}
