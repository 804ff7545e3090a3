"""A service on a free port, in a thread of the test."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import uvicorn

from dualfuse.hub import LoadedModel
from dualfuse.search.index import Index
from dualfuse.search.server.app import create_app
from dualfuse.search.server.options import ServerOptions
from dualfuse.search.server.run import create_service

OPTIONS = ServerOptions(window_ms=1, budget_ms=60_000)


@contextmanager
def running(loaded: LoadedModel, folder: Path, token: str = "") -> Iterator[str]:
    """Serve a folder on a free port; yield the address."""
    service = create_service(loaded, lambda: Index.build(loaded, folder), replace(OPTIONS, token=token), "tiny")
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, access_log=False, ws="none"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
