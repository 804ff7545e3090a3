"""Keeps big temporary tensors from being mapped and unmapped by the operating system at every operation."""

from __future__ import annotations

import ctypes
import sys

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
