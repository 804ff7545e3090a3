"""Less memory, and memory that is not asked for again and again."""

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

SHAPES = 4096
"""Variants of compiled blocks, over all layers; beyond that they run as they are written."""

Backend = str | Callable[..., Any]  # Any: a compiled function, of whatever the module takes and gives

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_big_blocks() -> None:
    """Raise two limits of glibc's malloc, for this process; does nothing where there is no glibc.

    By default blocks above 32 MiB are given back to the system when freed, and every page of the next one faults
    anew: measured in bench/memory.py.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # reason for getattr: other C libraries lack it
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def compile_blocks(units: Iterable[nn.Module], backend: Backend = "inductor") -> None:
    """Let modules be compiled, each by itself, when they are first run, and again for every new shape.

    Their names and weights stay what they are. Evaluation, whose shapes are many, should run under
    :func:`uncompiled`. ``backend`` is torch.compile's.
    """
    from torch._dynamo import config  # reason for a private module: these limits are public nowhere

    # all blocks are one code to it: layers x modalities x lengths of text
    config.recompile_limit, config.accumulated_recompile_limit = SHAPES, SHAPES
    for unit in units:
        unit.forward = torch.compile(unit.forward, dynamic=False, backend=backend)


def uncompiled() -> AbstractContextManager[None]:
    """Let what was compiled run as it is written."""
    return torch.compiler.set_stance("force_eager")


def checkpoint_activations(units: Iterable[nn.Module]) -> None:
    """Let modules keep only their inputs for the backward pass, which runs them again, with the same dropout.

    Their names and weights stay what they are.
    """
    for unit in units:
        unit.forward = partial(checkpoint, unit.forward, use_reentrant=False)
