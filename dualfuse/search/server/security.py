"""The token, the size of bodies, and the headers that every answer carries; as ASGI middleware."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from dualfuse.search.server.problems import Problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/healthz", "/readyz")
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
CSP = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    b"font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
DOCS_CSP = CSP.replace(b"script-src 'self'", b"script-src 'self' 'unsafe-inline'")
COOKIE = "dualfuse_token"  # set by the page, so that images load; never sent to other sites


class Guard:
    """Checks the token, bounds the body, and adds security headers."""

    def __init__(self, app: App, *, token: str, body_bytes: int) -> None:
        """``token`` empty: none is asked for."""
        self._app, self._token, self._body_bytes = app, token.encode(), body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 without the token, and 413 for a body that is too large; otherwise call the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS, (b"content-security-policy", CSP)]
            await send(message)

        try:
            self._check_token(scope)
            await self._app(scope, self._bounded(scope, receive), send_with_headers)
        except Problem as problem:
            await _respond(problem, send_with_headers)

    def _check_token(self, scope: Scope) -> None:
        if not self._token or scope["path"] in OPEN or _is_page(scope["path"]):
            return
        headers = dict(scope["headers"])
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        bearer = given.strip() if scheme.lower() == b"bearer" else b""
        sent = bearer or _cookie(headers.get(b"cookie", b""))
        if not hmac.compare_digest(sent, self._token):
            raise Problem(401, "send the token of this service in the header Authorization: Bearer TOKEN")

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        length = dict(scope["headers"]).get(b"content-length", b"")
        message = f"the request is too large; send at most {self._body_bytes:,} bytes"
        if length.isdigit() and int(length) > self._body_bytes:
            raise Problem(413, message)
        total = 0

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal total
            event = await receive()
            total += len(event.get("body", b""))
            if total > self._body_bytes:
                raise Problem(413, message)
            return event

        return bounded


def _is_page(path: str) -> bool:
    """Whether a path is a file of the page, which holds no data of the collection."""
    return path == "/" or path.startswith("/page/")


def _cookie(header: bytes) -> bytes:
    for part in header.split(b";"):
        name, _, value = part.strip().partition(b"=")
        if name == COOKIE.encode():
            return value
    return b""


async def _respond(problem: Problem, send: Send) -> None:
    body = json.dumps(problem.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if problem.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
