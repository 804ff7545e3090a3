"""The text stage, alone and between two others: its rows in order, what is frozen, and going on after a kill."""

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
import torch
from safetensors.torch import load_file
from tiny import WORDS, at_step, changed, lines, weights

from dualfuse.layers.blocks import Expert
from dualfuse.models.vlmo import InitConfig
from dualfuse.recipe import Recipe
from dualfuse.recipes.vlmo_text import TRAINED_RELATIVE
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig
from dualfuse.training import loop
from dualfuse.training.dataloader import training_dataloader


def corpus(folder: Path) -> str:
    """Thirty documents of whole sentences, and a broken line."""
    rng = np.random.default_rng(5)
    text = "\n\n".join("\n".join(" ".join(rng.choice(WORDS, 4)) for _ in range(5)) for _ in range(30))
    (folder / "text.jsonl").write_text("{broken\n" + "\n".join(json.dumps({"text": t}) for t in text.split("\n\n")))
    return str(folder / "text.jsonl")


@pytest.fixture(scope="module")
def stage(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Rows of two sentences of four words; three a document."""
    text = corpus(tmp_path_factory.mktemp("corpus"))
    made = changed(tiny, name="text", vl_expert_start=2, train=(text,), steps=6, save_every=2, warmup=0)
    return replace(made, task=MaskedTextConfig(), train_only=TRAINED_RELATIVE)


def test_it_learns(stage: Recipe, tmp_path: Path) -> None:
    """Every row repeats one word, so what is hidden can be seen."""
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join([word] * 9) for word in WORDS))
    longer = changed(
        stage,
        train=(str(tmp_path / "text.txt"),),
        steps=40,
        save_every=40,
        batch_size=32,
        lr=1e-2,
        drop_path=0.0,
        init=InitConfig(std=0.2, layer_scale=0.0),
    )
    loop.train((replace(longer, train_only=()),), tmp_path / "out")
    said = lines(tmp_path / "out")
    assert said[0]["accuracy/mlm"] < 0.4 and said[-1]["accuracy/mlm"] > 0.8
    assert said[-1]["loss"] < said[0]["loss"] / 3


def test_texts_come_in_order_and_broken_lines_are_skipped(
    stage: Recipe, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    stream = training_dataloader(stage, start=0)
    first = [next(stream) for _ in range(6)]
    again = training_dataloader(changed(stage, num_workers=1), start=4)
    for expected, loaded_batch in zip(first[4:], again, strict=False):
        assert all(torch.equal(loaded_batch.batch[name], tensor) for name, tensor in expected.batch.items())
    micro = training_dataloader(changed(stage, micro_batch=4), start=0)
    halves = [next(micro) for _ in range(2)]
    assert [half.step for half in halves] == [0, 0]
    assert sum(len(half.batch["ids"]) for half in halves) == len(first[0].batch["ids"]) == 8
    loop.train((changed(stage, steps=12, save_every=20),), tmp_path)  # 91 rows are seen at least once
    ledger = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert {line["key"] for line in ledger} == {"text.jsonl/0"} and "is not JSON" in ledger[0]["reason"]
    assert "90 texts; 1 unreadable lines" in caplog.text


def test_frozen_parameters_have_no_optimizer_state(
    stage: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No gradient, no state of the optimiser, and vision experts that never run."""
    with_gradient: set[str] = set()
    clip, forward = loop.clip_grad_norm, Expert.forward
    ran: set[int] = set()

    def look(task: torch.nn.Module, limit: float) -> torch.Tensor:
        with_gradient.update(name for name, p in task.named_parameters() if p.grad is not None)
        is_text = {id(e): n.endswith(".text") for n, e in task.named_modules() if isinstance(e, Expert)}
        assert ran & is_text.keys() == {number for number, text in is_text.items() if text} and len(is_text) == 4
        return clip(task, limit)

    def follow(expert: Expert, x: torch.Tensor) -> torch.Tensor:
        ran.add(id(expert))
        return forward(expert, x)

    monkeypatch.setattr(loop, "clip_grad_norm", look)
    monkeypatch.setattr(Expert, "forward", follow)
    loop.train((stage,), tmp_path)
    torch.manual_seed(stage.run.seed)
    start, end = stage.build().state_dict(), weights(tmp_path)
    moved = {name for name, tensor in end.items() if not torch.equal(tensor, start[name])}
    trained = ("model.words.", "model.types.", "model.norm.", "mlm_head.", "model.relative_bias.")
    assert moved and all(name.startswith(trained) or ".experts.text." in name for name in moved)
    assert {name for name in end if ".experts.text." in name} <= moved
    kept = load_file(tmp_path / "checkpoints" / "step-00000006" / "optimizer.safetensors")
    stateful = {name.removeprefix("optimizer.").rpartition(".")[0] for name in kept}
    assert stateful == with_gradient == moved
    images = 7 * 7 + 3 + 2  # also the two rows between words and patches
    assert torch.equal(end["model.relative_bias.table"][:images], start["model.relative_bias.table"][:images])


def test_validation(stage: Recipe, tmp_path: Path) -> None:
    evaluated = changed(stage, validation=stage.data.train[0], eval_every=3)
    loop.train((evaluated,), tmp_path)
    found = [line for line in lines(tmp_path) if "validation/mlm/accuracy" in line]
    assert [line["step"] for line in found] == [3, 6]
    assert all(0 <= line["validation/mlm/accuracy"] < 1 < line["validation/mlm/loss"] < 4 for line in found)


def chain(tiny: Recipe, stage: Recipe) -> tuple[Recipe, ...]:
    """Images (here: beside captions), then text, then pairs."""
    images = changed(tiny, name="images", vl_expert_start=2, itm_weight=0.0, mlm_weight=0.0, steps=4, save_every=2)
    text = replace(stage, start_from="images")
    pairs = changed(tiny, name="pairs", start_from="text", vl_expert_init="language", steps=4, save_every=2)
    return images, text, pairs


def killed_at(recipes: tuple[Recipe, ...], out: Path, prepare: Callable[[], None]) -> int | None:
    def run() -> None:
        prepare()
        loop.train(recipes, out)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def between_stages() -> None:
    """Dies when the first stage is done and the second has not begun."""
    loop.init_from = lambda *arguments: kill()


def in_the_text_stage() -> None:
    """Dies in step 5 of whatever reaches it: the first stage has only four."""
    loop.seed_step = at_step(5, kill)


def test_three_stages(tiny: Recipe, stage: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipes = chain(tiny, stage)
    loop.train(recipes, tmp_path / "whole")
    caplog.clear()
    out = tmp_path / "killed"
    for prepare, finished in ((between_stages, ["images"]), (in_the_text_stage, ["images"])):
        assert killed_at(recipes, out, prepare) == -signal.SIGKILL
        assert [recipe.name for recipe in recipes if (out / recipe.name / "final").exists()] == finished
    assert not (out / "pairs").exists()
    loop.train(recipes, out)
    assert "images: already finished" in caplog.text and f"tensors from {out}/text/final" in caplog.text
    for name in ("images", "text", "pairs"):
        assert lines(out / name) == lines(tmp_path / "whole" / name)
        same = load_file(tmp_path / "whole" / name / "final" / "model.safetensors")
        assert all(torch.equal(tensor, same[key]) for key, tensor in weights(out / name).items())
    report = json.loads((out / "pairs" / "start.json").read_text())
    assert len(report["experts"]) == 6 and all(".vl." in name for name in report["experts"])
    assert all(name.startswith(("itc_heads.", "itm_head.")) for name in report["new"])
