"""Parameters are frozen by the recipe and by the structure of the task, never by what a batch happens to reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from many import start
from tiny import changed, lines, shards, weights
from torch import Tensor, nn

from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Task, TaskConfig, TaskOutput
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig
from dualfuse.training import freeze, loop


@dataclass(frozen=True)
class HeadsConfig(TaskConfig):
    """One head per data set of a mixture."""

    heads: int = 3

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> dict[str, Any]:
        return {"image": processor.image(sample.image, rng), "source": sample.source}

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        return {
            "image": torch.stack([each["image"] for each in examples]),
            "source": torch.tensor([each["source"] for each in examples]),
        }

    def build(self, model: Any) -> Heads:
        return Heads(self, model)


class Heads(Task):
    def __init__(self, cfg: HeadsConfig, model: Any) -> None:
        super().__init__()
        self.cfg, self.model = cfg, model
        self.heads = nn.ModuleList(nn.Linear(model.width, 1) for _ in range(cfg.heads))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, batch: Any) -> TaskOutput:
        """Return the mean squared error of the brightness, by the heads of the sources in this batch alone."""
        self.calls += 1
        pooled = self.model.encode(self.model.embed_image(batch["image"]))
        targets, loss = batch["image"].mean((1, 2, 3)), pooled.new_zeros(())
        for number in batch["source"].unique().tolist():
            chosen = batch["source"] == number
            loss = loss + (self.heads[number](pooled[chosen])[:, 0] - targets[chosen]).square().sum()
        return TaskOutput(loss / len(pooled), {"loss": loss.detach() / len(pooled)})


@pytest.fixture(scope="module")
def mixture(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Four samples per step from three sets, so that most batches lack one of them."""
    folder = tmp_path_factory.mktemp("mixture")
    train = tuple(shards(folder, 12, f"set{number}") for number in range(3))
    data = replace(tiny.data, train=train, weights=(1.0, 1.0, 1.0), batch_size=4)
    mixed = replace(tiny, task=HeadsConfig(), data=replace(data, augment=None))
    return changed(mixed, steps=6, drop_path=0.0, eps=1e-3)


def test_heads_that_the_first_batch_lacks_are_trained(mixture: Recipe, tmp_path: Path) -> None:
    loop.train((mixture,), tmp_path)
    torch.manual_seed(mixture.run.seed)
    initial, trained = mixture.build().state_dict(), weights(tmp_path)
    assert all(not torch.equal(initial[f"heads.{n}.weight"], trained[f"heads.{n}.weight"]) for n in range(3))
    assert (tmp_path / freeze.FROZEN).read_text() == ""


def test_forward_runs_once_per_step(mixture: Recipe, tmp_path: Path) -> None:
    loop.train((mixture,), tmp_path)
    assert weights(tmp_path)["calls"] == mixture.run.steps


def test_two_processes_train_the_same_heads_as_one(mixture: Recipe, tmp_path: Path) -> None:
    loop.train((mixture,), tmp_path / "alone")
    assert start(2, lambda: print(loop.train((mixture,), tmp_path / "two"))) == [0, 0]
    expected = weights(tmp_path / "alone")
    for name, tensor in weights(tmp_path / "two").items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
    assert lines(tmp_path / "two")[-1]["loss"] == pytest.approx(lines(tmp_path / "alone")[-1]["loss"], abs=1e-5)


def test_fsdp_needs_a_fixed_graph(mixture: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert start(2, lambda: print(loop.train((changed(mixture, fsdp=True),), tmp_path))) == [1, 1]
    assert "declare fixed_graph = True" in capfd.readouterr().err


def test_graph_is_fixed_if_all_modules_are_our_own_or_declare_it(tiny: Recipe, mixture: Recipe) -> None:
    class Declared(Pairs):
        fixed_graph = True

    class Inherited(Declared):
        pass

    assert freeze.has_fixed_graph(tiny.build()) and not freeze.has_fixed_graph(mixture.build())
    built = (kind(PairsConfig(), tiny.model.build()) for kind in (Declared, Inherited))
    assert [freeze.has_fixed_graph(task) for task in built] == [True, False]


def test_probe_changes_no_state(tiny: Recipe) -> None:
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    task = Heads(HeadsConfig(), tiny.model.build())
    task.heads[0] = Counting(tiny.model.width, 1)
    before = task.state_dict()["calls"].clone()
    batch = {"image": torch.rand(2, 3, 32, 32), "source": torch.zeros(2, dtype=torch.long)}
    state = torch.get_rng_state()
    freeze.freeze_unused(task, batch)
    assert torch.equal(task.calls, before) and task.heads[0].calls == 0 and torch.equal(torch.get_rng_state(), state)
    assert task.heads[0].weight.requires_grad and not task.heads[1].weight.requires_grad


def test_counts_are_logged_and_frozen_names_listed(
    tiny: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        loop.train((changed(replace(tiny, train_only=("itc*",)), steps=1),), tmp_path)
    task = tiny.build()
    trained = sum(parameter.numel() for name, parameter in task.named_parameters() if name.startswith("itc"))
    everything = sum(parameter.numel() for parameter in task.parameters())
    assert f"{trained:,} parameters are trained, {everything - trained:,} are frozen" in caplog.text
    names = (tmp_path / freeze.FROZEN).read_text().splitlines()
    assert "itm_head.weight" in names and not any(name.startswith("itc") for name in names)


def test_loss_without_trainable_parameters_is_refused(mixture: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DualfuseError, match="depends on no trainable parameter"):
        loop.train((replace(mixture, train_only=("model.words.word*",)),), tmp_path)
