"""Memory and speed of a step: activation checkpointing, compiled and sharded blocks, and the limits of malloc."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dualfuse import distributed as dist
from dualfuse.recipe import Run
from dualfuse.tasks.base import Task

SHAPES = 4096
"""Largest number of compiled variants over all layers; beyond it blocks run eagerly."""

Backend = str | Callable[..., Any]  # Any: a compiled function of any signature

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_big_blocks() -> None:
    """Raise two limits of glibc's malloc for this process; does nothing without glibc.

    By default memory blocks above 32 MiB are returned to the system when freed, and every page of the next block
    faults again; bench/memory.py measures the difference.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # reason for getattr: other C libraries lack it
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def compile_blocks(blocks: Iterable[nn.Module], backend: Backend = "inductor") -> None:
    """Compile modules in place, each by itself, when they first run and again for every new shape.

    Parameter names do not change. Evaluation, which has many shapes, should run under :func:`uncompiled`. ``backend``
    is that of ``torch.compile``.
    """
    from torch._dynamo import config  # reason for a private module: no public API sets these limits

    # all blocks share one code object, so the limit counts layers x modalities x text lengths
    config.recompile_limit, config.accumulated_recompile_limit = SHAPES, SHAPES
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False, backend=backend)


def uncompiled() -> AbstractContextManager[None]:
    """Return a context in which compiled blocks run eagerly."""
    return torch.compiler.set_stance("force_eager")


def checkpoint_activations(blocks: Iterable[nn.Module]) -> None:
    """Checkpoint the activations of modules in place: keep their inputs, and recompute the rest in the backward pass.

    Dropout is the same in both passes. Parameter names do not change.
    """
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def wrap_blocks(task: Task, run: Run, device: torch.device) -> None:
    """Compile, checkpoint the activations of, and shard the blocks of a model; the order matters."""
    if run.compile:
        compile_blocks(task.model.fsdp_blocks())
    if run.activation_checkpointing:
        checkpoint_activations(task.model.fsdp_blocks())
    if run.fsdp:
        dist.apply_fsdp(task, task.model.fsdp_blocks(), device, half=run.precision == "bf16")
