"""Less memory, and memory that is not asked for again and again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_big_blocks() -> None:
    """Raises two limits of glibc's malloc, for this process; does nothing where there is no glibc.

    By default blocks above 32 MiB are given back to the system when freed, and every page of the next one faults
    anew: measured in bench/memory.py.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # reason for getattr: other C libraries lack it
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def recompute(units: Iterable[nn.Module]) -> None:
    """Lets modules keep only their inputs for the backward pass, which runs them again, with the same dropout.

    Their names and weights stay what they are.
    """
    for unit in units:
        unit.forward = partial(checkpoint, unit.forward, use_reentrant=False)
