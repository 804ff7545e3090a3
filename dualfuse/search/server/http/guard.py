"""ASGI middleware: who may ask, and how much: token, host names, size and time of bodies, requests at a time."""

from __future__ import annotations

import asyncio
import hmac
import time

from dualfuse.search.server.http.messages import App, Message, Receive, Scope, Send, header, respond
from dualfuse.search.server.http.problems import Problem
from dualfuse.search.server.metrics import Metrics
from dualfuse.search.server.options import ServerOptions

OPEN = ("/healthz", "/readyz")
COOKIE = b"dualfuse_token"  # set by the page, so that images load; never sent to other sites


class Guard:
    """Refuses requests without the token, of other host names, beyond the limits, and beyond the queue."""

    def __init__(self, app: App, *, options: ServerOptions, metrics: Metrics) -> None:
        """``options`` has the token (empty: none is asked for), the host names and the limits."""
        self._app, self._options, self._limits, self._metrics = app, options, options.limits, metrics
        self._token = options.token.encode()
        self._requests = self._bytes = 0  # of requests that are being answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, 403, 408, 413 or 429, or call the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_host(scope)
            self._check_token(scope)
            self._check_length(scope)
            if scope["path"].startswith("/v1/"):
                await self._admitted(scope, receive, send)
            else:
                await self._app(scope, _Body(self, receive).receive, send)
        except Problem as problem:
            await respond(problem, send)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._requests >= self._options.max_queue:
            raise Problem(
                429, "too many requests are waiting; repeat this one after the seconds of Retry-After", retry_after=1.0
            )
        body = _Body(self, receive)
        self._requests += 1
        self._metrics.pending.set(self._requests)
        try:
            await self._app(scope, body.receive, send)
        finally:
            self._requests -= 1
            self._bytes -= body.size
            self._metrics.pending.set(self._requests)

    def _check_host(self, scope: Scope) -> None:
        """Refuse other host names: a foreign page whose name resolves to this address could read the answers."""
        if not self._options.hosts:
            return
        host = header(scope, b"host").decode("latin-1").rsplit("]", 1)
        name = f"{host[0]}]" if len(host) > 1 else host[0].partition(":")[0]
        if name.strip("[]").lower() not in self._options.hosts:
            raise Problem(
                403, f"this service does not answer to the host name {name[:80]!r}; allow it by --allowed-host NAME"
            )

    def _check_token(self, scope: Scope) -> None:
        if not self._token or scope["path"] in OPEN or _is_page(scope["path"]):
            return
        scheme, _, given = header(scope, b"authorization").partition(b" ")
        bearer = given.strip() if scheme.lower() == b"bearer" else b""
        if not hmac.compare_digest(bearer or _cookie(header(scope, b"cookie")), self._token):
            raise Problem(401, "send the token of this service in the header Authorization: Bearer TOKEN")

    def _check_length(self, scope: Scope) -> None:
        length = header(scope, b"content-length")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            raise self.too_large

    @property
    def too_large(self) -> Problem:
        """The answer to a body beyond the limit."""
        return Problem(413, f"the request is too large; send at most {self._limits.body_bytes:,} bytes")

    def count(self, size: int, total: int) -> None:
        """Count ``size`` bytes that arrived, ``total`` of their body; ``Problem`` beyond the limits."""
        self._bytes += size
        if total > self._limits.body_bytes:
            raise self.too_large
        if self._bytes > self._limits.pending_bytes:
            raise Problem(429, "too many bytes of other requests are being read; repeat this one", retry_after=2.0)

    def deadline(self) -> float:
        """Return the time of ``time.monotonic`` at which a body that begins now has to be complete."""
        return time.monotonic() + self._limits.body_seconds


class _Body:
    """The body of one request, as it arrives."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self._guard, self._receive, self._deadline = guard, receive, guard.deadline()
        self._is_complete = False
        self.size = 0

    async def receive(self) -> Message:
        """Return the next message of the client."""
        if self._is_complete:  # the next message is that the client has gone
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._deadline - time.monotonic())
        except TimeoutError:
            raise Problem(408, "the body of the request did not arrive in time; send it faster, or less") from None
        self._is_complete = not message.get("more_body", False)
        size = len(message.get("body", b""))
        self.size += size
        self._guard.count(size, self.size)
        return message


def _is_page(path: str) -> bool:
    """Whether a path is a file of the page, which holds no data of the collection."""
    return path in ("/", "/docs") or path.startswith("/page/")


def _cookie(cookies: bytes) -> bytes:
    for part in cookies.split(b";"):
        name, _, value = part.strip().partition(b"=")
        if name == COOKIE:
            return value
    return b""
