"""Collectives over all processes: gathering examples, with gradient, and reducing scalars."""

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
    """Concatenate the tensors of all processes in rank order, with gradient: (B, ...) to (W * B, ...).

    B must be the same on every process. In the backward pass a process receives the sum of the gradients that all
    processes have for its tensor.
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


def fetch_examples(local: Tensor, numbers: Tensor) -> Tensor:
    """Return the examples ``numbers`` (K,) of the global batch, without gradient; K may differ between processes.

    Example b of process r has the number r * B + b. Only the requested examples are sent.
    """
    if world_size() == 1:
        return local.index_select(0, numbers)
    size = len(local)
    owner = numbers // size
    order = owner.argsort(stable=True)
    requests = torch.bincount(owner, minlength=world_size())
    requested = torch.empty_like(requests)
    td.all_to_all_single(requested, requests)
    to_send = numbers.new_empty(int(requested.sum()))
    td.all_to_all_single(to_send, numbers[order], requested.tolist(), requests.tolist())
    sent = local.detach().index_select(0, to_send - rank() * size)
    received = sent.new_empty(len(numbers), *local.shape[1:])
    td.all_to_all_single(received, sent, requests.tolist(), requested.tolist())
    return torch.empty_like(received).index_copy_(0, order, received)


def all_reduce_max(value: int) -> int:
    """Return the maximum of an integer over processes, without synchronizing with a GPU."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value)
    td.all_reduce(tensor, op=td.ReduceOp.MAX)
    return int(tensor)


def any_rank(value: bool) -> bool:
    """Return whether ``value`` is True on any process."""
    return all_reduce_max(int(value)) > 0


def barrier() -> None:
    """Wait for every process."""
    if world_size() > 1:
        td.barrier()
