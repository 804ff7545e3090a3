"""A real server on a loopback port: slow, huge and broken requests, host names, draining."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import uvicorn

from dualfuse.search.server.app import create_app
from dualfuse.search.server.http import protocol
from dualfuse.search.server.http.protocol import TimedProtocol
from dualfuse.search.server.options import Limits, ServerOptions, allowed_hosts
from dualfuse.search.server.service import Service

OPTIONS = ServerOptions(window_ms=1, budget_ms=60_000)


@contextmanager
def running(service: Service, options: ServerOptions = OPTIONS) -> Iterator[tuple[uvicorn.Server, int]]:
    service.options = options
    config = uvicorn.Config(
        create_app(service), port=0, http=TimedProtocol, log_config=None, ws="none", timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield server, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def exchange(port: int, data: bytes, wait: float = 10) -> bytes:
    """Return everything that the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), wait) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    return answer


def post(path: str, body: bytes, host: str = "localhost", more: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nConnection: close\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_client_that_sends_no_head_is_disconnected(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    with running(service) as (_, port):
        assert exchange(port, b"") == exchange(port, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Slow: 1") == b""
        assert exchange(port, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /he").count(b"200 OK") == 1


def test_bodies_are_bounded_in_time_and_size(service: Service) -> None:
    options = replace(OPTIONS, limits=Limits(body_seconds=0.2, body_bytes=1000))
    with running(service, options) as (_, port):
        assert b" 408 " in exchange(port, post("/v1/search", b"{")[:-1])
        assert b" 413 " in exchange(port, post("/v1/search", b"x" * 1001))
        head = post("/v1/search", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        answer = exchange(port, head + b"7D0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n")
        assert b" 413 " in answer and b"send at most 1,000 bytes" in answer
        assert b" 200 " in exchange(port, post("/v1/search", b'{"text": "a"}'))


def test_all_bodies_together_are_bounded(service: Service) -> None:
    options = replace(OPTIONS, limits=Limits(pending_bytes=1000))
    body = json.dumps({"text": "a dog " * 100}).encode()
    with running(service, options) as (_, port), socket.create_connection(("127.0.0.1", port)) as first:
        first.sendall(post("/v1/search", body)[:-1])
        deadline = time.monotonic() + 5
        while b" 429 " not in (answer := exchange(port, post("/v1/search", body))):
            assert time.monotonic() < deadline, answer
        assert b"retry-after" in answer.lower()
        first.sendall(body[-1:])
        assert b" 200 " in first.recv(1 << 16)
        while b" 200 " not in exchange(port, post("/v1/search", body)):  # nothing is counted for ever
            assert time.monotonic() < deadline


def test_foreign_host_names_are_refused_without_a_token(service: Service) -> None:
    options = replace(OPTIONS, hosts=allowed_hosts("127.0.0.1", "", ("search.example",)))
    with running(service, options) as (_, port):
        for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "search.example"):
            assert b" 200 " in exchange(port, post("/v1/search", b'{"text": "a"}', host))
        for host in ("evil.example", "localhost.evil.example", ""):
            assert b" 403 " in exchange(port, post("/v1/search", b'{"text": "a"}', host))
    assert allowed_hosts("0.0.0.0", "secret") == ()


def test_running_requests_end_before_the_server_does(service: Service) -> None:
    search = service.engine.nearest._run
    with running(service) as (server, port):
        service.engine.nearest._run = lambda queries: time.sleep(0.5) or search(queries)
        answers: list[bytes] = []
        asking = threading.Thread(target=lambda: answers.append(exchange(port, post("/v1/search", b'{"text": "dog"}'))))
        asking.start()
        while not service.metrics.pending._value.get():
            time.sleep(0.01)
        server.should_exit = True
        asking.join(10)
    assert b" 200 " in answers[0] and not service.is_ready


def test_requests_have_an_id_and_defects_an_answer(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    def broken(queries: object) -> None:
        raise RuntimeError("a defect")

    with running(service) as (_, port):
        service.engine.nearest._run = broken  # type: ignore[assignment]
        answer = exchange(port, post("/v1/search", b'{"text": "secret words"}', more="X-Request-ID: abc-1\r\n"))
        other = exchange(port, post("/v1/match", b"{}", more="X-Request-ID: <script>\r\n"))
    assert b" 500 " in answer and b"abc-1" in answer and b"a defect" not in answer and b"x-request-id: abc-1" in answer
    assert b"<script>" not in other and b"x-request-id" in other
    line = next(record for record in caplog.records if getattr(record, "status", 0) == 500)
    assert (line.endpoint, line.request_id, line.method) == ("/v1/search", "abc-1", "POST")  # type: ignore[attr-defined]
    assert not any("secret words" in record.getMessage() for record in caplog.records)
