"""What every request gets: an id, security headers, a line in the log, metrics, and an answer if the code fails."""

from __future__ import annotations

import logging
import re
import time
from itertools import count
from uuid import uuid4

from dualfuse.search.server.http.messages import App, Message, Receive, Scope, Send, header, respond
from dualfuse.search.server.http.problems import Problem
from dualfuse.search.server.metrics import Metrics

logger = logging.getLogger(__name__)
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
)


class Observer:
    """Outermost middleware: nothing that happens to a request escapes the log and the metrics."""

    def __init__(self, app: App, *, metrics: Metrics) -> None:
        """``metrics`` count requests by endpoint and status."""
        self._app, self._metrics = app, metrics
        self._prefix, self._numbers = uuid4().hex[:8], count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, and answer 500 with the id of the request if it fails."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        request_id = given.decode() if REQUEST_ID.fullmatch(given) else f"{self._prefix}-{next(self._numbers)}"
        scope.setdefault("state", {})["request_id"] = request_id
        status, started = 0, time.perf_counter()

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = (*HEADERS, (b"x-request-id", request_id.encode()))
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:
            logger.exception("request %s failed", request_id, extra={"request_id": request_id})
            if status:  # a part of the answer is sent: the server closes the connection
                raise
            await respond(Problem(500, f"an internal error; the log names the reason for {request_id}"), observed)
        finally:
            self._record(scope, request_id, status, time.perf_counter() - started)

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        """Count and log a request by its endpoint, never by what it asked for."""
        endpoint = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(endpoint, status).inc()
        self._metrics.seconds.labels(endpoint).observe(seconds)
        if status >= 400:
            self._metrics.refused.labels(str(status)).inc()
        record = {"request_id": request_id, "method": scope["method"], "endpoint": endpoint, "status": status}
        logger.info(
            "%s %s %d", scope["method"], endpoint, status, extra=record | {"milliseconds": round(1000 * seconds, 1)}
        )
