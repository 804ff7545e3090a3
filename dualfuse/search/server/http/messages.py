"""The messages of ASGI: their types, headers of requests, and answers to problems."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from dualfuse.search.server.http.problems import Problem

Scope = MutableMapping[str, Any]  # Any: of the ASGI specification
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def header(scope: Scope, name: bytes) -> bytes:
    """Return the first header of a name in lower case; empty without it."""
    return next((value for key, value in scope["headers"] if key == name), b"")


async def respond(problem: Problem, send: Send) -> None:
    """Answer a request by a problem."""
    body = json.dumps(problem.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers_to_send.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
