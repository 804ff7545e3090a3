"""Settings of every test: one thread, no network."""

from __future__ import annotations

import gc
import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # also for the processes that tests start; before torch is imported
os.environ["MPLBACKEND"] = "agg"

import torch
from tiny import recipe

from dualfuse.recipe import Recipe
from dualfuse.training import loop

torch.set_num_threads(1)
os.fsync = lambda file: None  # the power does not fail during a test; test_fault_fs.py tests that files are synced
gc.disable()  # while tests are collected: all that is imported stays


def pytest_collection_finish() -> None:
    """Exempt what was imported from garbage collection, also in the processes that tests fork."""
    gc.freeze()
    gc.enable()


def is_local(host: object) -> bool:
    """Return whether a host name or address is this machine; addresses that are not text (Unix sockets) are."""
    if host in (None, "", "localhost", socket.gethostname()) or not isinstance(host, str):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Fail a test that looks up another machine or connects to it."""
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else None
        if not is_local(host):
            pytest.fail(f"a test connects to {host}; tests use this machine only")
        connect(self, address)

    def guarded_lookup(host: object, *args: object, **kwargs: object) -> object:
        if not is_local(host):
            pytest.fail(f"a test looks up {host}; tests use this machine only")
        return lookup(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket, "getaddrinfo", guarded_lookup)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return recipe(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def whole(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    loop.train((tiny,), out)
    return out
