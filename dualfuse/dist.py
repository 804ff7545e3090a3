"""Many processes or one: the only file that speaks to torch.distributed. A world of one needs no process group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """Gives the number of this process, from 0."""
    return td.get_rank() if td.is_initialized() else 0


def world() -> int:
    """Gives the number of processes."""
    return td.get_world_size() if td.is_initialized() else 1


def device() -> torch.device:
    """Gives the device of this process: its GPU if there is one."""
    has_gpu = torch.cuda.is_available()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_gpu else torch.device("cpu")


@contextmanager
def processes() -> Iterator[torch.device]:
    """Joins the processes that torchrun started, if it did, and gives this one's device."""
    started = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    here = device()
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if not started or td.is_initialized():
        yield here
        return
    # gloo also beside GPUs: a number of the loop is exchanged without waiting for them
    td.init_process_group("cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
    try:
        yield here
    finally:
        td.destroy_process_group()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _gathered(local)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = gradient.contiguous()
        td.all_reduce(gradient)
        return gradient.chunk(world())[rank()]


def _gathered(local: Tensor) -> Tensor:
    everyone = [torch.empty_like(local) for _ in range(world())]
    td.all_gather(everyone, local.contiguous())
    return torch.cat(everyone)


def gather(local: Tensor) -> Tensor:
    """Gives the rows of all processes in the order of their ranks, with gradient: (B, ...) to (W * B, ...).

    Every process must bring as many rows. In the backward pass each process receives the sum of what all of them
    ask of its rows.
    """
    if world() == 1:
        return local
    return _Gather.apply(local) if local.requires_grad else _gathered(local)


def mean(value: Tensor) -> Tensor:
    """Gives the mean over processes, without gradient."""
    if world() == 1:
        return value.detach()
    value = value.detach().clone()
    td.all_reduce(value)
    return value / world()


def fetch(local: Tensor, wanted: Tensor) -> Tensor:
    """Gives rows of other processes by their global number, without gradient.

    Row b of process r has the number r * B + b. Only the wanted rows (K,) travel; each process may want others.
    """
    if world() == 1:
        return local.index_select(0, wanted)
    rows, here = len(local), rank()
    owner = wanted // rows
    order = owner.argsort(stable=True)
    asks = torch.bincount(owner, minlength=world())
    asked = torch.empty_like(asks)
    td.all_to_all_single(asked, asks)
    numbers = wanted.new_empty(int(asked.sum()))
    td.all_to_all_single(numbers, wanted[order], asked.tolist(), asks.tolist())
    answer = local.detach().index_select(0, numbers - here * rows)
    received = answer.new_empty(len(wanted), *local.shape[1:])
    td.all_to_all_single(received, answer, asks.tolist(), asked.tolist())
    return torch.empty_like(received).index_copy_(0, order, received)


def largest(value: int) -> int:
    """Gives the largest of a whole number over processes; no GPU is waited for."""
    if world() == 1:
        return value
    tensor = torch.tensor(value)
    td.all_reduce(tensor, op=td.ReduceOp.MAX)
    return int(tensor)


def anywhere(value: bool) -> bool:
    """Tells whether ``value`` is true in any process."""
    return largest(int(value)) > 0


def barrier() -> None:
    """Waits for every process."""
    if world() > 1:
        td.barrier()


def wrap(task: nn.Module, device: torch.device) -> nn.Module:
    """Gives the module whose forward() synchronises gradients; the bare one in a world of one."""
    if world() == 1:
        return task
    return DistributedDataParallel(task, device_ids=[device.index] if device.type == "cuda" else None)


def sync_gradients(module: nn.Module, *, when: bool) -> AbstractContextManager[None]:
    """Lets gradients accumulate locally until the last micro-batch of a step."""
    if isinstance(module, DistributedDataParallel) and not when:
        return module.no_sync()
    return nullcontext()
