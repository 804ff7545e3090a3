"""A batch a few rows at a time: the same loss and gradient as all at once, dropout included, in less memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from many import start
from tiny import BRIDGETOWER, MODEL
from torch import nn
from torch.testing import assert_close

from dualfuse import distributed as dist
from dualfuse.losses.grad_cache import grad_cache
from dualfuse.tasks.pretrain.pair_batch import PairBatch
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

VLMO = replace(MODEL, depth=3, vl_expert_start=2, vocab_size=50, text_length=8, drop_path=0.0)
MODELS = {"vlmo": VLMO, "bridgetower": replace(BRIDGETOWER, text=replace(BRIDGETOWER.text, vocab_size=50))}
PAIRS = 8


def batch(own: slice = slice(None)) -> PairBatch:
    """Pairs 2 and 3 show the same image."""
    torch.manual_seed(0)
    ids = torch.randint(5, 50, (PAIRS, 8))
    images = torch.randn(PAIRS, 3, 32, 32)
    number = torch.arange(PAIRS)
    return {
        "image": images[own],
        "ids": ids[own],
        "mask": (torch.arange(8) < (3 + number % 6)[:, None])[own],
        "masked_ids": ids.clone().index_fill_(1, torch.tensor([2]), 4)[own],
        "positions": torch.full((PAIRS, 1), 2)[own],
        "targets": ids[own, 2:3],
        "image_id": number.index_fill(0, torch.tensor([3]), 2)[own],
        "text_id": number[own],
        "source": torch.zeros_like(number)[own],
    }


def task(name: str, grad_cache_chunk: int) -> Pairs:
    torch.manual_seed(1)
    built: Pairs = PairsConfig(grad_cache_chunk=grad_cache_chunk).build(MODELS[name].build())
    return built.double()  # what is left is the order of sums, and not their rounding


def gradients(built: Pairs) -> Mapping[str, torch.Tensor]:
    return {name: torch.zeros(1) if p.grad is None else p.grad for name, p in built.named_parameters()}


def step(built: Pairs, forward: nn.Module, pairs: PairBatch) -> Mapping[str, torch.Tensor]:
    dist.seed_shared_rng(2)  # the same negatives are drawn
    loss = forward(pairs | {"image": pairs["image"].double()}).loss
    loss.backward()
    return {"loss": dist.all_reduce_mean(loss)} | gradients(built)


def assert_same(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> None:
    for name, value in some.items():
        assert_close(others[name], value, atol=1e-9, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", MODELS)
def test_same_gradient_as_all_at_once(name: str) -> None:
    whole = task(name, 0)
    wanted = step(whole, whole, batch())
    for rows in (1, 3):
        chunked = task(name, rows)
        assert_same(wanted, step(chunked, chunked, batch()))


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_same_gradient_as_one_process(name: str, world: int) -> None:
    """Each process brings its share of the batch, a few rows at a time."""
    whole = task(name, 0)
    wanted = step(whole, whole, batch())

    def work() -> None:
        torch.set_num_threads(1)
        with dist.process_group() as device:
            own = PAIRS // dist.world_size()
            built = task(name, 2)
            reached = {key for key, parameter in whole.named_parameters() if parameter.grad is not None}
            for key, parameter in built.named_parameters():  # as a recipe would, or the processes would wait for these
                parameter.requires_grad_(key in reached)
            mine = batch(slice(dist.rank() * own, (dist.rank() + 1) * own))
            assert_same(wanted, step(built, dist.wrap(built, device), mine))

    assert start(world, work) == [0] * world


def test_dropout_is_the_same_when_computed_again() -> None:
    x = torch.ones(4, 1000, requires_grad=True)
    (dropped,) = grad_cache(lambda part: (torch.dropout(part, 0.5, train=True),), 2, x)
    dropped.sum().backward()
    assert_close(x.grad, dropped.detach())  # each kept number is 2, and so is its gradient


def test_less_is_kept() -> None:
    kept: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    def work(part: torch.Tensor) -> tuple[torch.Tensor]:
        for _ in range(10):
            part = part.exp().sin()
        return (part,)

    sizes = []
    for rows in (0, 2):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            grad_cache(work, rows, torch.ones(8, 100, requires_grad=True))
        sizes.append(sum(kept))
    assert sizes[1] < sizes[0] / 5
