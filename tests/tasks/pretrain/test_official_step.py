"""The reference step of the benchmark has the loss and gradients of the pairs task."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dualfuse.losses.hard_negatives import sample_negatives
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

BENCH = Path(__file__).parents[3] / "bench" / "published_step.py"
SPEC = importlib.util.spec_from_file_location("published_step", BENCH)
assert SPEC is not None and SPEC.loader is not None
published_step = sys.modules["published_step"] = importlib.util.module_from_spec(SPEC)  # where dataclasses look
SPEC.loader.exec_module(published_step)

LENGTHS = (11, 17, 5, 14)  # of natural texts, the longest far from 40


def task(positions: str) -> Pairs:
    torch.manual_seed(3)
    cfg = VLMoConfig(
        width=48, depth=4, heads=4, vl_expert_start=2, patch_size=8, image_size=(32, 32), vocab_size=101,
        text_length=40, positions=positions, drop_path=0.0,
    )  # fmt: skip
    made = PairsConfig().build(cfg.build())
    for parameter in made.parameters():  # far from the initial values, so that zeros and ones hide nothing
        torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.1)
    return made


def batch() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(5)
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = rng.integers(5, 101, length)
        hidden = rng.permutation(np.arange(1, length - 1))[: 1 + number]
        labels, masked_ids = np.full(length, -100), ids.copy()
        labels[hidden], masked_ids[hidden] = ids[hidden], 4
        image = torch.from_numpy(rng.standard_normal((3, 32, 32), dtype=np.float32))
        texts = {"ids": ids, "masked_ids": masked_ids, "labels": labels}
        rows.append({"image": image, **texts, "image_id": number, "text_id": number, "source": 0})
    return PairsConfig().collate(rows)


@pytest.fixture(autouse=True)
def largest_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dualfuse.losses.hard_negatives.sample_negatives",
        lambda logits, allowed, _: sample_negatives(logits, allowed, torch.zeros_like(logits)),
    )


def gradients(of: Pairs, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    of.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in of.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_same_loss_and_gradients(positions: str) -> None:
    of, pairs = task(positions), batch()
    padded = published_step.padded(pairs, 40)
    assert padded["ids"].shape == (4, 40) and pairs["ids"].shape == (4, 17)
    assert (padded["labels"] != -100).sum() == sum(range(1, 5))
    theirs = published_step.published_loss(of, padded, published_step.heaviest)
    ours = of(pairs).loss
    assert_close(ours, theirs, atol=0, rtol=1e-5)
    wanted, got = gradients(of, theirs), gradients(of, ours)
    assert wanted.keys() == got.keys() == {name for name, _ in of.named_parameters()}
    for name, gradient in wanted.items():
        assert gradient.norm() > 1e-3, name
        assert (got[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6, name


def test_reference_negatives_follow_the_weights() -> None:
    logits = torch.tensor([[9.0, 1.0, 1.0], [0.0, 9.0, -200.0], [3.0, 3.0, 9.0]])
    rows = torch.tensor([published_step.negatives(logits, published_step.drawn) for _ in range(200)])
    assert (rows[:, 1] == 0).all() and not (rows == torch.arange(3)).any()
    assert 60 < (rows[:, 0] == 1).sum() < 140
