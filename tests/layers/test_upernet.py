"""BatchNorm on two processes against nn.BatchNorm2d on all images: outputs, gradients, running statistics."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as td
from torch import Tensor, multiprocessing, nn
from torch.testing import assert_close

from dualfuse import distributed as dist
from dualfuse.layers.upernet import BatchNorm


def pass_through(norm: nn.Module, rows: slice) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return outputs, and the gradients of images and weights, for some of four images."""
    drawn = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 5, 2, dtype=torch.float64, generator=drawn) * 3 + 7
    weights = torch.randn(4, 3, 5, 2, dtype=torch.float64, generator=drawn)[rows]
    own = images[rows].requires_grad_()
    done = norm.double()(own)
    (done.square() * weights).sum().backward()
    assert own.grad is not None
    gradients = {name: weight.grad for name, weight in norm.named_parameters() if weight.grad is not None}
    return done.detach(), own.grad, gradients


def fresh(kind: type[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    norm = kind(3)
    norm.weight.data, norm.bias.data = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 0.0, -1.0])
    return norm


def check(rank: int, meeting: Path) -> None:
    torch.set_num_threads(1)
    whole = fresh(nn.BatchNorm2d)
    outputs, inputs, weights = pass_through(whole, slice(None))
    td.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        mine, norm = slice(2 * rank, 2 * rank + 2), fresh(BatchNorm)
        found, gradient, own = pass_through(norm, mine)
        assert_close(found, outputs[mine])
        assert_close(gradient, inputs[mine])
        for name, value in own.items():
            assert_close(2 * dist.all_reduce_mean(value), weights[name])
        for name, value in whole.named_buffers():
            assert_close(dict(norm.named_buffers())[name], value)
        seen = torch.randn(2, 3, 5, 2, dtype=torch.float64)
        assert_close(norm.eval()(seen), whole.eval()(seen))
    finally:
        td.destroy_process_group()


def test_batch_norm_on_two_processes_matches_one(tmp_path: Path) -> None:
    multiprocessing.start_processes(check, args=(tmp_path / "meeting",), nprocs=2, start_method="fork")


def test_batch_norm_on_one_process_matches_torch() -> None:
    ours, theirs = (pass_through(fresh(kind), slice(None)) for kind in (BatchNorm, nn.BatchNorm2d))
    assert_close(ours[:2], theirs[:2])
