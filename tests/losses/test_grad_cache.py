"""Chunks against the whole batch: the same loss and gradient, including dropout, in less memory."""

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
    """Return eight pairs, of which 2 and 3 share an image."""
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
    return built.double()  # so that only the order of sums differs, not their rounding


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
def test_chunks_have_the_gradient_of_the_whole_batch(name: str) -> None:
    whole = task(name, 0)
    wanted = step(whole, whole, batch())
    for rows in (1, 3):
        chunked = task(name, rows)
        assert_same(wanted, step(chunked, chunked, batch()))


@pytest.mark.parametrize(("name", "world"), [("vlmo", 4), ("bridgetower", 2)])
def test_chunks_on_several_processes_have_the_gradient_of_one(name: str, world: int) -> None:
    """Every process holds its part of the batch, in chunks of two."""
    whole = task(name, 0)
    wanted = step(whole, whole, batch())

    def work() -> None:
        torch.set_num_threads(1)
        with dist.process_group() as device:
            own = PAIRS // dist.world_size()
            built = task(name, 2)
            reached = {key for key, parameter in whole.named_parameters() if parameter.grad is not None}
            for key, parameter in built.named_parameters():  # as a recipe does; DDP would wait for their gradient
                parameter.requires_grad_(key in reached)
            mine = batch(slice(dist.rank() * own, (dist.rank() + 1) * own))
            assert_same(wanted, step(built, dist.wrap(built, device), mine))

    assert start(world, work) == [0] * world


def test_recomputation_uses_the_same_dropout_mask() -> None:
    x = torch.ones(4, 1000, requires_grad=True)
    (dropped,) = grad_cache(lambda part: (torch.dropout(part, 0.5, train=True),), 2, x)
    dropped.sum().backward()
    assert_close(x.grad, dropped.detach())  # each kept number is 2, and so is its gradient


def test_fewer_activations_are_stored() -> None:
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
