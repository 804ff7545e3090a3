"""The network guard of conftest.py: a connection to another machine fails the test."""

from __future__ import annotations

import socket
import urllib.request

import pytest

REMOTE = "dualfuse.invalid"  # a name that never exists (RFC 2606)


def test_request_to_another_machine_fails():
    with pytest.raises(pytest.fail.Exception, match="looks up dualfuse"):
        urllib.request.urlopen(f"http://{REMOTE}/")


def test_connection_to_another_machine_fails():
    with socket.socket() as client, pytest.raises(pytest.fail.Exception, match="connects to dualfuse"):
        client.connect((REMOTE, 80))


def test_connection_to_this_machine_works():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
