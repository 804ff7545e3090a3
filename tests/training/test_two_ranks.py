"""Two processes that train together, as torchrun would start them, end where one process ends."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from many import start
from tiny import BRIDGETOWER, at_step, changed, lines, recipe, samples, weights

from dualfuse import distributed as dist
from dualfuse.data.sample import Sample
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.recipe import Recipe
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.training import checkpoint, loop


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Nothing is drawn that depends on the process: three steps, and an optimiser that does not blow up rounding."""
    content = samples(40)
    content[5] = Sample("005", content[5].image, ())
    made = recipe(tmp_path_factory.mktemp("steady"), images=content)
    return changed(made, drop_path=0.0, steps=3, save_every=2, eps=1e-3)


def assert_close(out: Path, alone: Path) -> None:
    assert [line["step"] for line in lines(out)] == [line["step"] for line in lines(alone)]
    for here, there in zip(lines(out), lines(alone), strict=True):
        assert here == pytest.approx(there, abs=1e-5, rel=1e-4)
    expected = weights(alone)
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0, msg=lambda text, name=name: name + text)


def keys(out: Path) -> set[tuple[int, str]]:
    """Return the steps and keys of all ledgers below a folder."""
    found = [json.loads(line) for path in out.rglob("skipped.jsonl") for line in path.read_text().splitlines()]
    return {(line["step"], line["key"]) for line in found}


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_two_processes_equal_one(
    steady: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str], micro_batch: int
) -> None:
    """With accumulation, two micro-batches of two on each of two processes are two of four on one."""
    loop.train((changed(steady, micro_batch=2 * micro_batch),), tmp_path / "alone")
    together = tmp_path / "together"
    capfd.readouterr()
    assert start(2, lambda: print(loop.train((changed(steady, micro_batch=micro_batch),), together))) == [0, 0]
    assert_close(together, tmp_path / "alone")
    assert keys(together) == keys(tmp_path / "alone")
    assert capfd.readouterr().err.count("step 3/3") == 1  # only one process speaks


@pytest.mark.parametrize(
    "cfg",
    [
        PairsConfig(itc_head=ITCHeadConfig(width=8, bias=True, temperature="plain"), negatives="source"),
        pytest.param(PairsConfig(itc_head=ITCHeadConfig(fused=True)), marks=pytest.mark.slow),
        PairsConfig(itm_weight=0.0, itc_head=ITCHeadConfig(fused=True), masking="token"),
        PairsConfig(itm_loss="listwise", mlm_weight=0.0),
    ],
    ids=["temperature", "pairs contrasted too", "pairs contrasted, nothing matched", "lists"],
)
def test_bridgetower_equals_one_process(steady: Recipe, tmp_path: Path, cfg: PairsConfig) -> None:
    recipe = replace(steady, model=BRIDGETOWER, task=cfg)
    loop.train((recipe,), tmp_path / "alone")
    assert start(2, lambda: print(loop.train((recipe,), tmp_path / "together"))) == [0, 0]
    assert_close(tmp_path / "together", tmp_path / "alone")


def test_one_process_resumes_a_run_of_two(steady: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.train((steady,), tmp_path / "alone")
    out, save = tmp_path / "out", checkpoint.save

    def only_the_first_saves(*arguments: object) -> Path:
        assert dist.rank() == 0
        return save(*arguments)  # type: ignore[arg-type]

    def ask() -> None:
        if dist.rank() == 1:  # one of them is asked, both stop
            os.kill(os.getpid(), signal.SIGTERM)

    def work() -> None:
        with pytest.raises(loop.Interrupted, match="after step 2"):
            loop.train((steady,), out)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", only_the_first_saves)
        patch.setattr(loop, "seed_step", at_step(1, ask))
        assert start(2, work) == [0, 0]
    assert checkpoint.latest(out / "checkpoints").name == "step-00000002"  # type: ignore[union-attr]
    loop.train((steady,), out)
    assert_close(out, tmp_path / "alone")


PARTIAL = {
    "contrast": PairsConfig(itm_weight=0.0, mlm_weight=0.0),
    "plain contrast": PairsConfig(itc_features="unimodal", itm_weight=0.0, mlm_weight=0.0),
    "plain": PairsConfig(itc_features="unimodal", itm_on_masked_text=True, negatives_per_pair=1),
    "match": PairsConfig(itc_weight=0.0, mlm_weight=0.0),
    "words": PairsConfig(itc_weight=0.0, itm_weight=0.0),
    "half": PairsConfig(itc_weight=0.0, negatives_per_pair=0, negative_hardness=0.0, negatives="local"),
}


def test_objectives_that_leave_parameters_out(steady: Recipe, tmp_path: Path) -> None:
    """What the loss does not reach is frozen: otherwise the second step would wait for its gradient, and raise."""
    two_steps = changed(steady, steps=2, save_every=0)

    def work() -> None:
        for name, cfg in PARTIAL.items():
            loop.train((replace(two_steps, task=cfg),), tmp_path / name)

    assert start(2, work) == [0, 0]
    for name in PARTIAL:
        assert [line["step"] for line in lines(tmp_path / name)] == [1, 2]
