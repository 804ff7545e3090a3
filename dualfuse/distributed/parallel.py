"""A task on many processes: whole on each of them (DDP), or every weight shared out among them (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dualfuse.distributed.process_group import rank, world_size

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

# what shares out is imported where there is more than one process: it takes a second


def wrap(task: nn.Module, device: torch.device) -> nn.Module:
    """Return the module whose forward() synchronises gradients; the bare one in a world of one, and if it is sharded."""
    if world_size() == 1 or is_sharded(task):
        return task
    return DistributedDataParallel(task, device_ids=[device.index] if device.type == "cuda" else None)


def apply_fsdp(task: nn.Module, units: Iterable[nn.Module], device: torch.device, *, half: bool) -> None:
    """Let each process hold its part of every weight, gradient and moment only; does nothing in a world of one.

    A unit is put together while it computes, all that belongs to none while the task does. Weights stay in float32;
    with ``half`` those of units travel and compute in bfloat16, and gradients are still added up in float32. The
    optimiser must be built afterwards.
    """
    if world_size() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (world_size(),))
    bf16, fp32 = torch.bfloat16, torch.float32
    policy = MixedPrecisionPolicy(bf16, reduce_dtype=fp32, output_dtype=fp32) if half else MixedPrecisionPolicy()
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(task, mesh=mesh)


def sync_gradients(module: nn.Module, *, when: bool) -> AbstractContextManager[None]:
    """Let gradients accumulate locally until the last micro-batch of a step."""
    if (sharded := _sharded(module)) is not None:
        sharded.set_requires_gradient_sync(when)
    if isinstance(module, DistributedDataParallel) and not when:
        return module.no_sync()
    return nullcontext()


@contextmanager
def between_steps(task: nn.Module) -> Iterator[None]:
    """Let parts of a task be called outside of its forward(), as judging does; every process must take part."""
    sharded = _sharded(task)
    if sharded is None:
        yield
        return
    sharded.unshard()  # what belongs to no unit: units come together by themselves
    try:
        yield
    finally:
        sharded.reshard()


def is_sharded(task: nn.Module) -> bool:
    """Return whether :func:`shard` has shared a task out."""
    return _sharded(task) is not None


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that is shared out; any other as it is."""
    return tensor.to_local() if _is_sharded_tensor(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor that is shared out, in every process, and all must ask; any other as it is."""
    return tensor.full_tensor() if _is_sharded_tensor(tensor) else tensor


def distribute_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Return a whole tensor shared out as ``model`` is; every process has it already, so nothing travels."""
    if _is_sharded_tensor(tensor) or not _is_sharded_tensor(model):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None)


def gathered_parameters(task: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a task, on the CPU of the first process; elsewhere nothing. All must ask.

    One weight is put together at a time, so that no device holds them all.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in task.state_dict().items():
        tensor = full_tensor(tensor.detach())
        if rank() == 0:
            weights[name] = tensor.cpu()
    return weights


def _sharded(module: nn.Module) -> FSDPModule | None:
    if world_size() == 1:
        return None
    from torch.distributed.fsdp import FSDPModule

    return module if isinstance(module, FSDPModule) else None


def _is_sharded_tensor(tensor: Tensor) -> TypeGuard[DTensor]:
    if world_size() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
