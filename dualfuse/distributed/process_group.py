"""The process group: rank and world size, its start and end, and what happens when a process is lost."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as td

TIMEOUT = 30.0
"""Default minutes to wait for other processes."""

_lost: list[RuntimeError] = []
"""The error by which another process was lost; it keeps pending operations alive until this process ends."""


_shared_rng = torch.Generator()


def seed_shared_rng(number: int) -> None:
    """Seed :func:`draw_shared` on this process; all processes must use the same ``number``."""
    _shared_rng.manual_seed(number)


def draw_shared() -> int:
    """Return a number from 0 to 2^31 - 1 that is the same on all processes, without communication.

    All processes must draw equally often from this generator, which nothing else uses.
    """
    return int(torch.randint(2**31, (), generator=_shared_rng))


def rank() -> int:
    """Return the rank of this process."""
    return td.get_rank() if td.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return td.get_world_size() if td.is_initialized() else 1


def device() -> torch.device:
    """Return the device of this process: its GPU if there is one."""
    has_gpu = torch.cuda.is_available()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_gpu else torch.device("cpu")


@contextmanager
def process_group(dist_timeout: float = TIMEOUT) -> Iterator[torch.device]:
    """Join the process group if torchrun started this process, and yield the device.

    Raises ``ConnectionError`` if another process has ended early, or does not respond for ``dist_timeout`` minutes.
    """
    started = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    here = device()
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if not started or td.is_initialized():
        yield here
        return
    # gloo also with GPUs: scalars of the training loop are exchanged without synchronizing with them
    backend = "cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo"
    try:
        td.init_process_group(backend, timeout=timedelta(minutes=dist_timeout))
        yield here
    except BaseException as error:
        if not (isinstance(error, RuntimeError) and _is_network_error(error)):
            # its frames hold users of the group; if those were freed after the group, gloo could deadlock
            traceback.clear_frames(error.__traceback__)
            raise
        _lost.append(error)
        atexit.register(_exit)
        raise ConnectionError(_report(dist_timeout)) from error
    finally:
        if td.is_initialized() and not _lost:
            td.destroy_process_group()


def _exit() -> None:
    """Exit without cleanup, in which gloo would wait for the lost process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _is_network_error(error: RuntimeError) -> bool:
    return isinstance(error, td.DistError) or "gloo/" in str(error)  # gloo raises no type of its own


def _report(dist_timeout: float) -> str:
    return (
        f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} lost another process: it ended, or did not "
        f"respond for {dist_timeout:g} minutes (run.dist_timeout). See the last output of that process for the reason. "
        "The same command resumes from the last checkpoint, on any number of processes that divides data.batch_size"
    )
