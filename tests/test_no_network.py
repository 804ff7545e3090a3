"""The guard of conftest.py: other machines fail the test, this one does not."""

from __future__ import annotations

import socket
import urllib.request

import pytest

ELSEWHERE = "dualfuse.invalid"  # a name that is guaranteed never to exist (RFC 2606)


def test_a_request_to_another_machine_fails_the_test():
    with pytest.raises(pytest.fail.Exception, match="looks up dualfuse"):
        urllib.request.urlopen(f"http://{ELSEWHERE}/")


def test_a_connection_to_another_machine_fails_the_test():
    with socket.socket() as client, pytest.raises(pytest.fail.Exception, match="connects to dualfuse"):
        client.connect((ELSEWHERE, 80))


def test_this_machine_can_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
