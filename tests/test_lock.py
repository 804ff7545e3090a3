"""Two processes on one output: the second names the first, or waits for it; what a killed process left is replaced."""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from tiny import at_step, png_image, samples, weights

from dualfuse import hub
from dualfuse.errors import DualfuseError
from dualfuse.lock import lock
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.output_folder import PreparedFolder
from dualfuse.prepare.pipeline import prepare
from dualfuse.prepare.shard_writer import write_shards
from dualfuse.recipe import Recipe
from dualfuse.search import index as index_module
from dualfuse.search.index import Index
from dualfuse.training import loop

ONE = PrepareOptions(num_workers=1)


@contextmanager
def paused(work: Callable[[Callable[[], None]], object]) -> Iterator[tuple[BaseProcess, Event]]:
    """Run ``work(pause)`` in another process, which waits in ``pause`` until the event is set."""
    context = multiprocessing.get_context("fork")
    reached, resume = context.Event(), context.Event()

    def pause() -> None:
        reached.set()
        assert resume.wait(60)

    process = context.Process(target=work, args=(pause,))
    process.start()
    try:
        assert reached.wait(60)
        yield process, resume
    finally:
        process.kill()
        process.join()


def holder(process: BaseProcess) -> str:
    """Return the pattern of a message that names a process and its host."""
    return rf"is in use by process {process.pid} on {re.escape(socket.gethostname())}"


def test_the_second_training_of_a_folder_is_refused_and_a_stale_lock_replaced(
    tiny: Recipe, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def train(pause: Callable[[], None]) -> None:
        loop.seed_step = at_step(7, pause)
        loop.train((tiny,), out)

    with paused(train) as (process, _):
        with pytest.raises(DualfuseError, match=rf"out {holder(process)} .*; wait until it ends, or give another"):
            loop.train((tiny,), out)
        assert str(process.pid) in (out / ".lock").read_text()
    assert (out / ".lock").exists()  # of a killed process
    loop.train((tiny,), out)
    assert not (out / ".lock").exists()
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(out).items())


def test_the_second_prepare_of_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for number in range(5):
        (source / f"{number}.png").write_bytes(png_image(number))
        (source / f"{number}.txt").write_text("a cat")
    prepare(source, tmp_path / "whole", ONE)

    def work(pause: Callable[[], None]) -> None:
        add = PreparedFolder.add
        monkeypatch.setattr(PreparedFolder, "add", lambda self, *rest: (pause(), add(self, *rest)))
        prepare(source, out, ONE)

    with paused(work) as (process, resume):
        with pytest.raises(DualfuseError, match=holder(process)):
            prepare(source, out, ONE)
        resume.set()
        process.join()
        assert process.exitcode == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole").iterdir())
    prepare(source, out, ONE)  # complete: it is only checked


def test_the_second_index_build_waits_and_embeds_nothing(
    tiny: Recipe, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = hub.load(whole / "final")
    write_shards(samples(6), tmp_path / "data")

    def build(pause: Callable[[], None]) -> None:
        add = index_module._add
        monkeypatch.setattr(index_module, "_add", lambda *arguments: (pause(), add(*arguments))[1])
        Index.build(loaded, tmp_path / "data")

    with paused(build) as (process, resume):
        monkeypatch.setattr("dualfuse.lock.time.sleep", lambda _: (resume.set(), process.join()))
        assert Index.build(loaded, tmp_path / "data").embedded == 0
    assert re.search(rf"waiting for process {process.pid} on ", caplog.text)
    assert [path.suffix for path in (tmp_path / "data" / ".dualfuse").iterdir()] == [".index"]


def test_a_lock_excludes_other_threads_and_removes_what_it_created(tmp_path: Path) -> None:
    folder, refused = tmp_path / "new" / "folder", []

    def second() -> None:
        with pytest.raises(DualfuseError, match=rf"in use by this process \({os.getpid()} on ") as error:
            lock(tmp_path / "new" / ".." / "new" / "folder" / ".lock", folder).__enter__()
        refused.append(error)

    with lock(folder / ".lock", folder):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        second()
    assert len(refused) == 2 and not (tmp_path / "new").exists()


def test_a_lock_released_while_it_is_opened_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The former holder removes its file between the opening and the locking of the next one."""
    times: list[int] = []

    def removed(_: int) -> bool:
        times.append(1)
        if len(times) == 1:
            (tmp_path / ".lock").unlink()
        return True

    monkeypatch.setattr("dualfuse.lock._lock", removed)
    with lock(tmp_path / ".lock", tmp_path):
        assert len(times) == 2 and (tmp_path / ".lock").exists()


def test_file_systems_without_locks_and_folders_that_are_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("dualfuse.lock.fcntl.lockf", unsupported)
    with lock(tmp_path / ".lock", tmp_path):
        pass
    monkeypatch.setattr(os, "access", lambda *_: False)
    with lock(tmp_path / ".lock", tmp_path):
        assert not any(tmp_path.iterdir())
