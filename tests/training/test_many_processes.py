"""Any number of processes, replicated or sharded, sees the same samples and ends with the same weights."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from many import start
from tiny import BRIDGETOWER, at_step, changed, lines, recipe, weights

from dualfuse import distributed as dist
from dualfuse.models.vlmo import InitConfig
from dualfuse.recipe import Recipe
from dualfuse.training import checkpoint, loop, sharded_checkpoint


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Negatives are drawn, words masked and images cropped; dropout and drop-path, each process's own, are off."""
    made = recipe(tmp_path_factory.mktemp("steady"))
    strong = InitConfig(std=0.1, layer_scale=1.0)  # at small weights it would not show which pairs were drawn
    return changed(made, drop_path=0.0, init=strong, steps=4, save_every=2, eps=1e-3)


@pytest.fixture(scope="module")
def alone(steady: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "out"
    loop.train((steady,), out)
    return out


@pytest.fixture(scope="module")
def sharded(steady: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two processes that share the weights out."""
    out = tmp_path_factory.mktemp("sharded") / "out"
    run(2, changed(steady, fsdp=True), out)
    return out


def run(world: int, recipe: Recipe, out: Path) -> None:
    if world == 1:
        loop.train((recipe,), out)
    else:
        assert start(world, lambda: print(loop.train((recipe,), out))) == [0] * world


def assert_same(out: Path, other: Path, atol: float = 2e-6) -> None:
    expected = weights(other)
    assert weights(out).keys() == expected.keys()
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, expected[name], atol=atol, rtol=0, msg=lambda text, name=name: name + text)
    for here, there in zip(lines(out), lines(other), strict=True):
        assert here == pytest.approx(there, abs=1e-5, rel=1e-4)


def take_back(out: Path, to: Path, step: int) -> Path:
    """Make ``to`` a run that was stopped after ``step``: its checkpoint, and no later one."""
    shutil.copytree(out, to)
    shutil.rmtree(to / "final")
    for path in (to / "checkpoints").iterdir():
        if path.name != f"step-{step:08d}":
            shutil.rmtree(path)
    return to


@pytest.mark.parametrize(
    ("world", "settings"),
    [
        (4, {}),
        pytest.param(4, {"fsdp": True, "activation_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param(2, {"fsdp": True, "grad_cache_chunk": 1}, marks=pytest.mark.slow),
    ],
    ids=["4", "4, sharded, recomputed", "2, sharded, one example at a time"],
)
def test_many_processes_equal_one(steady: Recipe, alone: Path, tmp_path: Path, world: int, settings: dict) -> None:
    """And what four have saved, two and one go on with, whether they share the weights out or not."""
    recipe = changed(steady, **settings)
    run(world, recipe, tmp_path / "out")
    assert_same(tmp_path / "out", alone)
    is_sharded = "fsdp" in settings
    assert (tmp_path / "out/checkpoints/step-00000002/shards").is_dir() == is_sharded
    if world == 2:
        again = take_back(tmp_path / "out", tmp_path / "again", step=2)
        run(2, recipe, again)
        assert_same(again, tmp_path / "out", atol=0.0)
    if world == 4:
        for fewer, shard in ((2, not is_sharded), (1, False)):
            again = take_back(tmp_path / "out", tmp_path / f"on-{fewer}", step=2)
            run(fewer, changed(recipe, fsdp=shard), again)
            assert_same(again, alone)


def test_two_sharded_processes_equal_one_and_resume(steady: Recipe, alone: Path, sharded: Path, tmp_path: Path) -> None:
    assert_same(sharded, alone)
    assert (sharded / "checkpoints/step-00000002/shards").is_dir()
    again = take_back(sharded, tmp_path / "again", step=2)
    run(2, changed(steady, fsdp=True), again)
    assert_same(again, sharded, atol=0.0)


@pytest.mark.slow
def test_sharded_parts_of_all_kinds(steady: Recipe, tmp_path: Path) -> None:
    """Frozen weights, accumulated gradients, the released optimiser, a validation, and one process that goes on."""
    data = steady.data.train[0]
    recipe = changed(steady, fsdp=True, steps=2, adamw="official", micro_batch=2, validation=data, eval_every=1)
    recipe = replace(recipe, model=BRIDGETOWER, train_only=("model.layers.*", "model.text_tower.*", "itc_heads.*"))
    run(2, recipe, tmp_path / "two")
    run(1, changed(recipe, micro_batch=4), tmp_path / "one")
    assert_same(tmp_path / "two", tmp_path / "one")
    again = take_back(tmp_path / "two", tmp_path / "again", step=2)
    run(1, changed(recipe, micro_batch=4), again)
    assert_same(again, tmp_path / "two", atol=0.0)
    with pytest.raises(ValueError, match=r"had 4 samples per forward pass.* Give --run.micro-batch 4"):
        run(1, recipe, take_back(tmp_path / "two", tmp_path / "others", step=2))


def test_bf16_trains_near_float32_and_saves_float32(steady: Recipe, alone: Path, tmp_path: Path) -> None:
    """bf16 in the blocks, float32 in what is saved; on the way losses stay near those of float32."""
    run(2, changed(steady, fsdp=True, precision="bf16", steps=2), tmp_path)
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}
    for here, there in zip(lines(tmp_path), lines(alone)[:2], strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=0.02)
        assert here["loss"] != there["loss"]


@pytest.mark.slow
def test_kill_during_a_checkpoint_resumes_from_the_one_before(steady: Recipe, alone: Path, tmp_path: Path) -> None:
    """In the background of step 4, when all parts are on disk but it does not bear its name yet."""

    def die(*_: object) -> Path:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def work() -> None:
        complete = sharded_checkpoint.complete
        sharded_checkpoint.complete = lambda partial, keep: (die if "4" in partial.name else complete)(partial, keep)
        with pytest.raises(ConnectionError, match="lost another process"):
            loop.train((changed(steady, fsdp=True),), tmp_path)

    assert start(2, work) == [-signal.SIGKILL, 0]
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000002",
        "step-00000004.partial",
    ]
    run(1, steady, tmp_path)
    assert_same(tmp_path, alone)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow  # test_full_disk.py fills the disk of one process
def test_full_disk_is_reported(steady: Recipe, alone: Path, tmp_path: Path) -> None:
    """The parts of step 4 do not fit: those of step 2 stay, nothing of the others does, and all processes say so."""
    folder = tmp_path / "checkpoints"

    def work() -> None:
        begin = sharded_checkpoint.begin

        def fills_up(at: Path, step: int, keep: int) -> Path:
            if step == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            return begin(at, step, keep)

        sharded_checkpoint.begin = fills_up
        with pytest.raises(
            OSError, match=r"04\.partial could not be written \(.*process 1: .*Earlier checkpoints are intact"
        ) as found:
            loop.train((changed(steady, fsdp=True),), tmp_path)
        assert "; it takes " in str(found.value)

    assert start(2, work) == [0, 0]
    assert [path.name for path in folder.iterdir()] == ["step-00000002"]
    run(1, steady, tmp_path)
    assert_same(tmp_path, alone)


@pytest.mark.parametrize("ends", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["ends", "hangs"])
def test_lost_process_ends_the_others(steady: Recipe, tmp_path: Path, ends: bool) -> None:
    """Mostly at once if it has ended, and after ``run.dist_timeout`` in any case."""
    pid = tmp_path / "pid"

    def be_lost() -> None:
        if dist.rank() == 1:
            pid.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL if ends else signal.SIGSTOP)

    def work() -> None:
        loop.seed_step = at_step(2, be_lost)
        began = time.monotonic()
        with pytest.raises(ConnectionError, match=r"process 0 of 2 lost another process.*same command resumes"):
            loop.train((changed(steady, save_every=1, dist_timeout=0.25),), tmp_path / "out")
        assert time.monotonic() - began < 120
        if not ends:
            os.kill(int(pid.read_text()), signal.SIGKILL)

    assert start(2, work) == [0, -signal.SIGKILL]
    assert checkpoint.latest(tmp_path / "out/checkpoints").name == "step-00000002"  # type: ignore[union-attr]


def test_damaged_shard_is_named(steady: Recipe, sharded: Path, tmp_path: Path) -> None:
    out = take_back(sharded, tmp_path / "out", step=2)
    part = next((out / "checkpoints/step-00000002/shards").glob("__1_*"))
    os.truncate(part, part.stat().st_size - 8)
    with pytest.raises(ValueError, match=rf"{part.name} is .* bytes as saved; there is no earlier"):
        run(1, steady, out)
