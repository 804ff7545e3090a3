"""`dualfuse serve` as a process of its own: started, killed while it refreshes, and asked to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tiny import png_image

from dualfuse import hub
from dualfuse.hub import LoadedModel
from dualfuse.search.index import Index

SECONDS = 60  # until a server is ready


@contextmanager
def served(model: Path, images: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dualfuse", "serve", str(model), str(images), "--port", str(port), *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            with suppress(OSError):
                if call(address, "/readyz", None) == "ready":
                    break
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
            time.sleep(0.05)
        yield process, address
    finally:
        process.kill()
        process.wait()
        assert process.stderr
        process.stderr.close()


def call(address: str, path: str, body: object = None, token: str = "") -> object:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    with urllib.request.urlopen(urllib.request.Request(address + path, data, headers), timeout=30) as response:
        content = response.read().decode()
    return json.loads(content) if response.headers["content-type"] == "application/json" else content


@pytest.fixture
def model(loaded: LoadedModel, tmp_path: Path) -> Path:
    return hub.save(tmp_path / "model", loaded.task, loaded.recipe)


@pytest.mark.slow
def test_killed_while_it_refreshes_the_next_start_serves_the_files(
    loaded: LoadedModel, model: Path, images: Path
) -> None:
    """Whatever the moment of the kill, names and scores are those of an index that is built from nothing."""
    for delay in (0.02, 0.2):
        with served(model, images) as (process, address):
            for number in range(60):
                (images / f"new-{delay}-{number}.png").write_bytes(png_image(hash((delay, number)) % 10_000, 48))
            (images / f"autumn/{int(100 * delay) % 6 * 2:02}.png").unlink(missing_ok=True)
            call(address, "/v1/refresh", {})
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            process.wait()
        with served(model, images) as (_, address):
            answer = call(address, "/v1/search", {"text": "a red dog", "top": 1000})
        assert isinstance(answer, dict)
        expected = Index.build(loaded, images).search("a red dog", top=1000)
        assert answer["index"]["count"] == len(expected) == len(list(images.rglob("*.png")))
        assert {hit["name"]: hit["score"] for hit in answer["hits"]} == pytest.approx(
            {hit.name: hit.score for hit in expected}, abs=1e-5
        )


@pytest.mark.slow
def test_a_process_asks_for_its_token_logs_json_and_stops_on_sigterm(model: Path, images: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    token.chmod(0o600)
    with served(model, images, "--host", "0.0.0.0", "--token-file", str(token)) as (process, address):
        with pytest.raises(OSError, match="401"):
            call(address, "/v1/info", None)
        call(address, "/v1/search", {"text": "a secret wish"}, "0123456789abcdef")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {"endpoint": "/v1/search", "status": 200}.items() <= {
        name: value for line in lines for name, value in line.items() if line.get("endpoint") == "/v1/search"
    }.items()
    assert "secret wish" not in log and "0123456789abcdef" not in log
