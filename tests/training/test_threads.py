"""How many threads torch gets beside loader processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dualfuse.training.dataloader import limit_threads


@pytest.fixture(autouse=True)
def one_thread_again() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(("cores", "workers", "threads"), [(4, 1, 3), (2, 0, 2), (2, 1, 1), (2, 8, 1)])
def test_every_worker_has_a_core(monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, threads: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    limit_threads(workers)
    assert torch.get_num_threads() == threads


def test_threads_set_by_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    limit_threads(0)
    assert torch.get_num_threads() == 1
