"""A run ends with the same weights wherever it was stopped, and says no to what would go wrong later."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file
from tiny import at_step, caption, changed, lines, picture, recipe, samples, weights
from torch import Tensor

from dualfuse import hub
from dualfuse.data.sample import Sample
from dualfuse.engine import checkpoint, train
from dualfuse.engine.interrupt import stop_asked
from dualfuse.recipe import Recipe
from dualfuse.tasks.pairs import PairsConfig


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return recipe(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    train.train((tiny,), out)
    return out


def assert_same_run(out: Path, whole: Path) -> None:
    """Bitwise the same weights, and the same losses: so also the same data in the same order."""
    assert lines(out) == lines(whole)
    expected = weights(whole)
    assert weights(out).keys() == expected.keys()
    assert [name for name, tensor in weights(out).items() if not torch.equal(tensor, expected[name])] == []


def interrupt() -> None:
    raise KeyboardInterrupt


def test_what_the_whole_run_is(tiny: Recipe, whole: Path) -> None:
    said = lines(whole)
    assert [line["step"] for line in said] == list(range(1, 11))
    assert [line["count/samples"] for line in said] == list(range(8, 81, 8))
    assert len({line["loss"] for line in said}) == 10
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step-00000005", "step-00000010"]
    start = tiny.task.build(tiny.model.build()).state_dict()
    assert weights(whole).keys() == start.keys()


@pytest.mark.parametrize("workers", [0, 1])
def test_stopped_in_the_middle(
    tiny: Recipe, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    again = changed(tiny, workers=workers)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "seed_step", at_step(7, interrupt))
        train.train((again,), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 8))
    torch.manual_seed(99)  # what happened before does not matter
    train.train((again,), tmp_path)
    assert_same_run(tmp_path, whole)


def test_another_seed_is_another_run(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    train.train((changed(tiny, seed=2),), tmp_path)
    assert not set(map(str, lines(whole))) & set(map(str, lines(tmp_path)))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step_7() -> None:
    train.seed_step = at_step(7, kill)


def kill_after_the_checkpoint() -> None:
    save = checkpoint.save

    def save_and_die(*arguments: object) -> Path:
        save(*arguments)  # type: ignore[arg-type]
        kill()
        raise AssertionError

    train.checkpoint.save = save_and_die


def kill_while_writing(times: int) -> None:
    """Dies when half of the n-th file of tensors is written: two per checkpoint, one for the final model."""
    save_file, count = safetensors.torch.save_file, iter(range(1, times + 1))

    def half(tensors: dict[str, Tensor], path: Path) -> None:
        save_file(tensors, path)
        if next(count) == times:
            os.truncate(path, path.stat().st_size // 2)
            kill()

    safetensors.torch.save_file = half


def in_a_process(tiny: Recipe, out: Path, prepare: Callable[..., None], *arguments: int) -> int | None:
    """Trains in another process after ``prepare``, which may break it; gives the exit code."""

    def run() -> None:
        prepare(*arguments)
        train.train((tiny,), out)

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
    train.train((tiny,), tmp_path)
    assert_same_run(tmp_path, whole)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop(tiny: Recipe, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Between two lines of the log, so that the counts of the last steps could be lost."""
    seldom = changed(tiny, log_every=4, save_every=100)
    with monkeypatch.context() as patch, pytest.raises(train.Interrupted, match="stopped after step 7; the same"):
        patch.setattr(train, "seed_step", at_step(6, lambda: os.kill(os.getpid(), number)))
        train.train((seldom,), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [4, 7]
    assert checkpoint.latest(tmp_path / "checkpoints").name == "step-00000007"  # type: ignore[union-attr]
    train.train((seldom,), tmp_path)
    assert [(line["step"], line["count/samples"]) for line in lines(tmp_path)] == [(4, 32), (7, 56), (8, 64), (10, 80)]
    avoided = [line["count/false_negatives_avoided"] for line in (lines(tmp_path)[-1], lines(whole)[-1])]
    assert avoided[0] == avoided[1] > 0
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path).items())


def test_counts_survive_a_kill_between_two_lines(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    seldom = changed(tiny, log_every=4)
    assert in_a_process(seldom, tmp_path, kill_in_step_7) == -signal.SIGKILL
    train.train((seldom,), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [4, 5, 8, 10]
    counts = [{name: n for name, n in line.items() if name.startswith("count/")} for line in lines(tmp_path)]
    by_step = {line["step"]: line for line in lines(whole)}
    for line, count in zip(lines(tmp_path), counts, strict=True):
        assert count == {name: by_step[line["step"]][name] for name in count}


def test_a_second_signal_does_not_wait() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_asked() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # the same one once more, passed on by torchrun
        assert stop.asked
        stop.since -= 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def gradient(tiny: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> dict[str, Tensor]:
    """Gives the gradient of the first step."""
    found: dict[str, Tensor] = {}

    def keep(task: torch.nn.Module, limit: float) -> Tensor:
        found.update({name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None})
        return torch.zeros(())

    monkeypatch.setattr(train, "clip_gradients", keep)
    train.train((changed(tiny, steps=1, **changes),), out)
    return found


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Every text has ten words, of which two are masked; nothing is random but what data and masks are."""
    content = [Sample(f"{n}", picture(n), (caption(n, 10),)) for n in range(16)]
    made = recipe(tmp_path_factory.mktemp("even"), pictures=content)
    return changed(made, drop_path=0.0, contrast=0.0, match=0.0, mask_share=0.2)


def test_micro_batches_of_as_many_words_give_the_gradient_of_the_batch(
    even: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = gradient(even, tmp_path / "a", monkeypatch)
    in_parts = gradient(even, tmp_path / "b", monkeypatch, micro_batch=2)
    assert at_once.keys() == in_parts.keys() and len(at_once) > 20
    for name, value in at_once.items():
        torch.testing.assert_close(in_parts[name], value, atol=1e-6, rtol=1e-4)
    assert lines(tmp_path / "a")[0]["words"] == pytest.approx(lines(tmp_path / "b")[0]["words"], abs=1e-5)


def test_a_step_is_the_mean_of_its_micro_batches(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they have different numbers of words: each stands for itself."""
    passes: list[dict[str, Tensor]] = []
    accumulate, steps = train.accumulate, train.micro_steps

    def apart(state: train.State, *rest: object) -> object:
        before = {name: p.grad.clone() for name, p in state.task.named_parameters() if p.grad is not None}
        log = accumulate(state, *rest)  # type: ignore[arg-type]
        after = {name: p.grad for name, p in state.task.named_parameters() if p.grad is not None}
        passes.append({name: grad - before.get(name, 0) for name, grad in after.items()})
        return log

    monkeypatch.setattr(train, "accumulate", apart)
    gradient(tiny, tmp_path / "a", monkeypatch, micro_batch=4)
    halves = list(passes)
    monkeypatch.setattr(train, "micro_steps", lambda recipe: 1 if recipe.run.micro_batch == 4 else steps(recipe))
    passes.clear()
    alone = gradient(tiny, tmp_path / "b", monkeypatch, micro_batch=4)  # the first half only, with its full weight
    for name, value in alone.items():
        torch.testing.assert_close(2 * halves[0][name], value, atol=1e-6, rtol=1e-5)
    assert len(halves) == 2


def test_every_weighting_can_be_trained_and_the_rest_is_frozen(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unmoved(name: str, cfg: PairsConfig, **model: object) -> set[str]:
        made = changed(replace(tiny, task=cfg), steps=1, warmup=0, weight_decay=0.5, **model)
        train.train((made,), tmp_path / name)
        torch.manual_seed(made.run.seed)
        start = made.task.build(made.model.build()).state_dict()
        end = weights(tmp_path / name)
        return {name for name, tensor in start.items() if torch.equal(tensor, end[name])}

    def only(names: set[str], *parts: str) -> bool:
        """Whether every name contains a part, and every part a name."""
        covered = all(any(part in name for part in parts) for name in names)
        return covered and all(any(part in name for name in names) for part in parts)

    assert unmoved("all", PairsConfig()) == set()
    assert "not trained" not in capsys.readouterr().err
    contrast = unmoved("contrast", PairsConfig(match=0.0, words=0.0))
    assert only(contrast, "match_head.", "word_head.", "pooler.")
    assert "not trained, because the loss does not depend on them: model.pooler.weight" in capsys.readouterr().err
    plain = unmoved("plain", PairsConfig(match=0.0, words=0.0, views="plain"))
    assert only(plain, "match_head.", "word_head.", "pooler.", "blocks.1.experts.both.")
    match = unmoved("match", PairsConfig(contrast=0.0, words=0.0))
    assert only(match, "word_head.", "projections.", "blocks.1.experts.image.", "blocks.1.experts.text.")
    words = unmoved("words", PairsConfig(contrast=0.0, match=0.0))
    assert only(words, "match_head.", "pooler.", "projections.", "blocks.1.experts.image.", "blocks.1.experts.text.")
    with pytest.raises(ValueError, match="depends on no trainable parameter"):
        unmoved("none", PairsConfig(contrast=0.0, match=0.0, words=0.0))


def test_train_only(tiny: Recipe, tmp_path: Path) -> None:
    some = changed(tiny, steps=2, warmup=0, train_only=("*.experts.text.*", "model.words.*"))
    train.train((some,), tmp_path)
    torch.manual_seed(some.run.seed)
    start = some.task.build(some.model.build()).state_dict()
    moved = {name for name, tensor in weights(tmp_path).items() if not torch.equal(tensor, start[name])}
    assert {name.split(".")[1] for name in moved} == {"blocks", "words"}
    assert all("experts.text" in name or name.startswith("model.words.") for name in moved)
    with pytest.raises(ValueError, match=r"pattern '\*.expert.text.\*' of train_only matches no parameter; there are"):
        train.train((replace(some, train_only=("*.expert.text.*",)),), tmp_path / "typo")


def test_stages(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = changed(tiny, name="first", steps=2, match=0.0, words=0.0)
    second = changed(tiny, name="second", steps=2, start_from="first", text_length=16)  # more rows in the bias table
    assert train.train((first, second), tmp_path) == tmp_path / "second" / "final"
    said = capsys.readouterr().err
    fits, all_of = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert f"starting from {tmp_path / 'first' / 'final'}: {len(fits) - 1} of {len(all_of)} tensors" in said
    assert "new: model.relative_bias.table" in said and "unused: model.relative_bias.table" in said

    again = replace(second, name="again", start_from=str(tmp_path / "first" / "final"))
    train.train((again,), tmp_path / "again")
    expected = weights(tmp_path / "second")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "again").items())

    written = (tmp_path / "first" / "final" / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "first" / "final" / "config.json").touch()
    with monkeypatch.context() as patch:  # a finished stage reads nothing and runs nothing
        patch.setattr(train, "fit", None)
        train.train((first, second), tmp_path)
    assert "first: finished before, in" in capsys.readouterr().err
    assert (tmp_path / "first" / "final" / "model.safetensors").stat().st_mtime_ns == written


def test_the_start_is_read_once(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on needs its checkpoint only: what it once started from may be gone."""
    first = changed(tiny, steps=1)
    train.train((first,), tmp_path / "first")
    second = changed(tiny, name="second", start_from=str(tmp_path / "first" / "final"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "seed_step", at_step(6, interrupt))
        train.train((second,), tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "gone")
    train.train((second,), tmp_path / "second")
    with pytest.raises(ValueError, match=r"first/final/model.safetensors is missing"):
        train.train((second,), tmp_path / "third")


def test_a_start_that_does_not_fit(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    foreign = load_file(whole / "final" / "model.safetensors")
    folder = tmp_path / "foreign"
    folder.mkdir()
    safetensors.torch.save_file({f"module.{name}": tensor for name, tensor in foreign.items()}, folder / hub.WEIGHTS)
    with pytest.raises(ValueError, match=r"nothing in .*foreign fits this recipe's model.*there it is module\.match"):
        train.train((replace(tiny, start_from=str(folder)),), tmp_path / "out")


def test_another_recipe_in_the_same_folder(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "seed_step", at_step(6, interrupt))
        train.train((tiny,), tmp_path)
    other = changed(tiny, lr=1e-3, depth=3, match=0.5)
    expected = (
        rf"(?s)^{tmp_path} holds a run of another recipe:\n  model.depth was 2, is 3\n  task.match was 1.0, is 0.5\n  "
        "optim.lr was 0.002, is 0.001\nGive the same settings"
    )
    for _ in range(2):  # unfinished, then finished
        with pytest.raises(ValueError, match=expected):
            train.train((other,), tmp_path)
        train.train((changed(tiny, workers=1, keep=1, log_every=5, save_every=2),), tmp_path)  # not another run
    recipe_file = tmp_path / "recipe.json"
    (tmp_path / "final" / "config.json").unlink()
    recipe_file.write_text("{")
    with pytest.raises(ValueError, match=r"recipe.json should say which recipe wrote the checkpoints beside it, but"):
        train.train((tiny,), tmp_path)


def test_mistakes_are_told_before_anything_is_trained(tiny: Recipe, tmp_path: Path) -> None:
    first = changed(tiny, name="first")

    def fails(match: str, **changes: object) -> None:
        second = changed(tiny, name="second", **changes)
        with pytest.raises(ValueError, match=match):
            train.train((first, second), tmp_path)
        assert not (tmp_path / "first").exists()

    fails("no training data: give --data.train SHARDS", train=())
    fails("no tar file matches .*nowhere", train=(str(tmp_path / "nowhere"),))
    fails("no tar file matches .*nowhere", validation=str(tmp_path / "nowhere"))
    fails("a batch of 8 cannot be divided by 3 samples per micro-batch", micro_batch=3)
    with pytest.raises(ValueError, match=r"need different names, not \['first', 'first'\]"):
        train.train((first, first), tmp_path)


def test_bf16(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    train.train((changed(tiny, precision="bf16"),), tmp_path)
    half, full = ([line["loss"] for line in lines(out)] for out in (tmp_path, whole))
    assert half != full and np.allclose(half, full, rtol=0.05)
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


def test_validation(tiny: Recipe, whole: Path, tmp_path: Path) -> None:
    judged = changed(tiny, validation=tiny.data.train[0], eval_every=4)
    train.train((judged,), tmp_path)
    name = "validation/text_to_image/R@10"
    found = {line["step"]: line[name] for line in lines(tmp_path) if name in line}
    assert list(found) == [4, 8, 10]
    assert all(0 < value < 1 for value in found.values())
    expected = weights(whole)  # looking changes nothing
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path).items())


def test_broken_samples_are_skipped_and_told(tmp_path: Path) -> None:
    content = samples(12)
    content[3] = Sample("003", content[3].image[:90], content[3].texts)
    content[7] = Sample("007", content[7].image, ())
    broken = changed(recipe(tmp_path, pictures=content), steps=6, save_every=4, log_every=4)
    train.train((broken,), tmp_path / "out")
    ledger = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert {(line["key"], line["stand_in"]) for line in ledger} == {
        ("train-00000/003", "train-00000/004"),
        ("train-00000/007", "train-00000/008"),
    }
    assert {line["reason"] for line in ledger if line["key"].endswith("7")} == {"it has no text"}
    assert len(ledger) == 8  # 48 samples are four epochs of twelve
    assert [line["count/skipped"] for line in lines(tmp_path / "out")] == [
        sum(line["step"] <= 4 for line in ledger),
        8,
    ]
