"""What tests of two processes share."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable


def on_two_ranks(work: Callable[[], None]) -> list[int | None]:
    """Runs ``work`` in two processes, as torchrun would start them, and gives their exit codes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def enter(rank: int) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
        work()

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=enter, args=(rank,)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]
