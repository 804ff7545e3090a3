"""Run a function on a file of unknown origin in a child process without network and with limits."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from dualfuse.errors import DualfuseError

CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"  # system libraries of macOS do not survive a fork
BASE_MEMORY = 2 << 30
"""Bytes of memory beside those that depend on the size of the file."""
BASE_SECONDS = 120
"""Seconds beside those that depend on the size of the file."""
BYTES_PER_SECOND = 10_000_000
"""Speed below which reading a file is ended."""


def run_confined(function: Callable[[], None], path: Path, result: Path) -> None:
    """Run ``function``, which reads the file ``path``, in a forked process; it returns values by the file ``result``.

    The process has no network, and its memory, time and output are limited by the size of ``path``. Raises
    ``DualfuseError`` with the message of a ``DualfuseError`` there, or if a limit is reached. Without fork, the
    function runs in this process.
    """
    if not CAN_FORK:
        return function()
    size = path.stat().st_size
    seconds = BASE_SECONDS + size // BYTES_PER_SECOND
    problem = result.with_name("problem.txt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about threads: the child uses none
        child = os.fork()
    if not child:
        _run_in_child(function, problem, size, seconds)
    status = _wait(child, seconds)
    if problem.is_file():
        raise DualfuseError(problem.read_text(encoding="utf-8"))
    if status:
        raise DualfuseError(
            f"reading {path} took more than {seconds:,} seconds or {_memory(size) >> 30:,} GB of memory and was ended "
            f"(status {status}); such a file is damaged or hostile"
        )


def _wait(child: int, seconds: int) -> int:
    """Return the exit status of a child, negative for a signal; kill it after ``seconds`` or at an interrupt."""
    deadline = time.monotonic() + seconds
    try:
        pause = 0.001
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(ended[1])


def _run_in_child(function: Callable[[], None], problem: Path, size: int, seconds: int) -> NoReturn:
    code = 1
    try:
        torch.set_num_threads(1)  # the threads of the parent do not exist here
        _confine(size, seconds)
        function()
        code = 0
    except DualfuseError as error:
        problem.write_text(str(error), encoding="utf-8", errors="backslashreplace")
    finally:
        os._exit(code)  # no exit handlers, no traceback


def _confine(size: int, seconds: int) -> None:
    """Limit memory, processor time and output of this process, and refuse sockets."""
    import resource  # on POSIX only, as fork is

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        memory = pages * resource.getpagesize() + _memory(size)
        _limit(resource.RLIMIT_AS, memory)
    except OSError:  # a system without /proc
        pass
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_CORE, 0)
    socket.socket = _refuse  # pyright: ignore[reportAttributeAccessIssue]
    socket.create_connection = _refuse


def _limit(kind: int, value: int) -> None:
    import resource

    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _memory(size: int) -> int:
    return BASE_MEMORY + 4 * size


def _refuse(*_: object, **__: object) -> NoReturn:
    raise OSError("this process has no network")
