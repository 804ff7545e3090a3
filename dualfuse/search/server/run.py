"""Start a service: load, index, bind, warm up, serve until a signal, drain."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import uvicorn

from dualfuse.hub import LoadedModel
from dualfuse.search.index import Index
from dualfuse.search.server.app import create_app
from dualfuse.search.server.http.protocol import TimedProtocol
from dualfuse.search.server.options import ServerOptions, check_address
from dualfuse.search.server.service import Service

logger = logging.getLogger(__name__)
DRAIN = 30  # seconds that running requests get after SIGTERM
KEEP_ALIVE = 30  # seconds that an idle connection stays open
BACKLOG = 1024  # connections that wait to be accepted


def create_service(loaded: LoadedModel, build: Callable[[], Index], options: ServerOptions, name: str) -> Service:
    """Build the index and return the service of a model; ``name`` is the model's in answers: no path."""
    index = build()
    if options.rerank is None:
        options = replace(options, rerank=min(index.default_rerank, options.limits.rerank))
    return Service(index, options, rebuild=build, name=Path(name).name or "model")


def serve(service: Service, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM, then finish running requests. Raises ``DualfuseError`` for an open address."""
    check_address(host, service.options.token)
    config = uvicorn.Config(
        create_app(service),
        host=host,
        port=port,
        http=TimedProtocol,
        ws="none",
        log_config=None,
        access_log=False,  # it would log queries of GET requests, and our own log has the endpoint
        server_header=False,
        proxy_headers=False,  # nothing depends on the address of a client
        timeout_graceful_shutdown=DRAIN,
        timeout_keep_alive=KEEP_ALIVE,
        backlog=BACKLOG,
    )
    uvicorn.Server(config).run()
