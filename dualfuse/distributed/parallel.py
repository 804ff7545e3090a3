"""A task on several processes: replicated (DDP), or sharded (FSDP2)."""

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

# FSDP and DTensor are imported only with several processes: the import takes a second


def wrap(task: nn.Module, device: torch.device, *, fixed_graph: bool = True) -> nn.Module:
    """Return the module whose forward() synchronizes gradients: DDP, or the task itself if sharded or alone.

    Without ``fixed_graph`` DDP finds the parameters that a batch does not use, instead of waiting for their gradients:
    a process without one contributes zero, and a parameter that no process used has no gradient in that step.
    """
    if world_size() == 1 or is_sharded(task):
        return task
    return DistributedDataParallel(
        task,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=not fixed_graph,
    )


def apply_fsdp(task: nn.Module, blocks: Iterable[nn.Module], device: torch.device, *, half: bool) -> None:
    """Shard weights, gradients and optimizer state over all processes; a single process changes nothing.

    A block is gathered while it computes, the remaining weights while the task does. Weights are stored in float32;
    with ``half`` those of blocks are gathered and computed in bfloat16, while gradients are reduced in float32. The
    optimizer must be built afterwards.
    """
    if world_size() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (world_size(),))
    bf16, fp32 = torch.bfloat16, torch.float32
    policy = MixedPrecisionPolicy(bf16, reduce_dtype=fp32, output_dtype=fp32) if half else MixedPrecisionPolicy()
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(task, mesh=mesh)


def sync_gradients(module: nn.Module, *, when: bool) -> AbstractContextManager[None]:
    """Return a context that synchronizes gradients in the backward pass only ``when`` it is the last micro-batch's."""
    if (sharded := _sharded(module)) is not None:
        sharded.set_requires_gradient_sync(when)
    if isinstance(module, DistributedDataParallel) and not when:
        return module.no_sync()
    return nullcontext()


@contextmanager
def between_steps(task: nn.Module) -> Iterator[None]:
    """Allow parts of a task to be called outside of its forward(), as evaluation does; all processes must enter."""
    sharded = _sharded(task)
    if sharded is None:
        yield
        return
    sharded.unshard()  # the weights outside of blocks; blocks gather theirs themselves
    try:
        yield
    finally:
        sharded.reshard()


def is_sharded(task: nn.Module) -> bool:
    """Return whether :func:`apply_fsdp` has sharded a task."""
    return _sharded(task) is not None


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor; any other tensor unchanged."""
    return tensor.to_local() if _is_sharded_tensor(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a sharded tensor gathered on every process (all must call this); any other tensor unchanged."""
    return tensor.full_tensor() if _is_sharded_tensor(tensor) else tensor


def distribute_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a full tensor sharded like ``other``, without communication: every process has all of it."""
    if _is_sharded_tensor(tensor) or not _is_sharded_tensor(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def gathered_parameters(task: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a task on the CPU of rank 0, and an empty dict elsewhere; all processes must call this.

    Weights are gathered one at a time, so that no device holds all of them.
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
