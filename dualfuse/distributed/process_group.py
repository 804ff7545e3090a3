"""The processes of a run: which one this is, how they find each other, and what happens when one is lost."""

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

PATIENCE = 30.0
"""Minutes that a process waits for the others."""

_lost: list[RuntimeError] = []
"""How another process was lost; with it is kept, until this one ends, whatever still waits for an answer."""


def rank() -> int:
    """Return the number of this process, from 0."""
    return td.get_rank() if td.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return td.get_world_size() if td.is_initialized() else 1


def device() -> torch.device:
    """Return the device of this process: its GPU if there is one."""
    has_gpu = torch.cuda.is_available()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_gpu else torch.device("cpu")


@contextmanager
def process_group(dist_timeout: float = PATIENCE) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did, and gives this one's device.

    Raises ``ConnectionError`` when another process has ended too early, or does not answer for ``patience`` minutes.
    """
    started = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    here = device()
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if not started or td.is_initialized():
        yield here
        return
    # gloo also beside GPUs: a number of the loop is exchanged without waiting for them
    backend = "cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo"
    try:
        td.init_process_group(backend, timeout=timedelta(minutes=dist_timeout))
        yield here
    except BaseException as error:
        if not (isinstance(error, RuntimeError) and _is_of_the_network(error)):
            # its frames hold what speaks through the group; freed after the group, gloo may wait for itself for ever
            traceback.clear_frames(error.__traceback__)
            raise
        _lost.append(error)
        atexit.register(_end)
        raise ConnectionError(_report(dist_timeout)) from error
    finally:
        if td.is_initialized() and not _lost:
            td.destroy_process_group()


def _end() -> None:
    """End this process without taking anything down: gloo would wait there for the one that is lost."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _is_of_the_network(error: RuntimeError) -> bool:
    return isinstance(error, td.DistError) or "gloo/" in str(error)  # gloo names its source files, but no type


def _report(dist_timeout: float) -> str:
    return (
        f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} has lost another one: it ended, or did not answer "
        f"for {dist_timeout:g} minutes (run.dist_timeout). What it said last tells why; the same command goes on from the last "
        "checkpoint, with any number of processes that divides data.batch_size"
    )
