"""What tests of many processes share: gloo processes on this machine, started as torchrun would."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch.distributed.checkpoint
import torch.distributed.fsdp  # noqa: F401  before the processes fork: each of them would take a second for it

from dualfuse.cli.console import log_to_stderr


def start(world: int, work: Callable[[], None]) -> list[int | None]:
    """Run ``work`` in ``world`` processes that log as a command does, and return their exit codes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def enter(rank: int) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
        with log_to_stderr():
            work()

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=enter, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]
