"""What processes tell each other: rows of tensors, with gradient where it is wanted, and single numbers."""

from __future__ import annotations

import torch
import torch.distributed as td
from torch import Tensor

from dualfuse.distributed.process_group import rank, world_size


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _gathered(local)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = gradient.contiguous()
        td.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def _gathered(local: Tensor) -> Tensor:
    everyone = [torch.empty_like(local) for _ in range(world_size())]
    td.all_gather(everyone, local.contiguous())
    return torch.cat(everyone)


def all_gather(local: Tensor) -> Tensor:
    """Return the rows of all processes in the order of their ranks, with gradient: (B, ...) to (W * B, ...).

    Every process must bring as many rows. In the backward pass each process receives the sum of what all of them
    ask of its rows.
    """
    if world_size() == 1:
        return local
    return _Gather.apply(local) if local.requires_grad else _gathered(local)


def all_reduce_mean(value: Tensor) -> Tensor:
    """Return the mean over processes, without gradient."""
    if world_size() == 1:
        return value.detach()
    value = value.detach().clone()
    td.all_reduce(value)
    return value / world_size()


def fetch_examples(local: Tensor, wanted: Tensor) -> Tensor:
    """Return rows of other processes by their global number, without gradient.

    Row b of process r has the number r * B + b. Only the wanted rows (K,) travel; each process may want others.
    """
    if world_size() == 1:
        return local.index_select(0, wanted)
    rows, here = len(local), rank()
    owner = wanted // rows
    order = owner.argsort(stable=True)
    asks = torch.bincount(owner, minlength=world_size())
    asked = torch.empty_like(asks)
    td.all_to_all_single(asked, asks)
    numbers = wanted.new_empty(int(asked.sum()))
    td.all_to_all_single(numbers, wanted[order], asked.tolist(), asks.tolist())
    answer = local.detach().index_select(0, numbers - here * rows)
    received = answer.new_empty(len(wanted), *local.shape[1:])
    td.all_to_all_single(received, answer, asks.tolist(), asked.tolist())
    return torch.empty_like(received).index_copy_(0, order, received)


def all_reduce_max(value: int) -> int:
    """Return the largest of a whole number over processes; no GPU is waited for."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    td.all_reduce(tensor, op=td.ReduceOp.MAX)
    return int(tensor)


def any_rank(value: bool) -> bool:
    """Return whether ``value`` is true in any process."""
    return all_reduce_max(int(value)) > 0


def barrier() -> None:
    """Wait for every process."""
    if world_size() > 1:
        td.barrier()
