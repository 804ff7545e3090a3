"""A file system that fails or ends the process at its n-th change: what the tests of interrupted writing share.

A change is creating, writing, syncing, renaming or removing a file or folder. Python code is followed through the
functions of ``io``, ``os`` and ``shutil``; the libraries that write by themselves (safetensors, tokenizers, torch) are
followed at their call, and then write a half file and raise what they raise on a full disk.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tokenizers
from forked import in_a_process

from dualfuse import io as dualfuse_io

FAULTS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
KILL = "kill"
CALLS = ("replace", "rename", "mkdir", "fsync", "ftruncate", "chmod")
NEED_SPACE = ("create", "write", "mkdir", "fsync")
"""They fail from the n-th change on with ENOSPC; EIO happens once."""
REMOVALS = ("unlink", "rmdir")
"""A process can be killed there; a disk that is full can still remove files."""


class FaultyDisk:
    """Counts the changes below ``root``, and lets number ``at`` (1-based) fail with ``fault``; 0: none."""

    def __init__(self, root: Path, fault: str = "", at: int = 0) -> None:
        self.root, self.fault, self.at = os.path.realpath(root), fault, at
        self.changes: list[str] = []
        self.handles: dict[int, str] = {}

    def change(self, what: str, path: object, half: Callable[[], object] | None = None) -> bool:
        """Count a change; where it fails, do ``half`` of it and raise, or kill the process."""
        name = self.handles.get(path, "") if isinstance(path, int) else os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        if not name.startswith(self.root):
            return False
        self.changes.append(f"{what} {os.path.relpath(name, self.root)}")
        if what in REMOVALS and self.fault != KILL:
            return False
        stays_full = self.fault == "ENOSPC" and what in NEED_SPACE and 0 < self.at <= len(self.changes)
        if len(self.changes) != self.at and not stays_full:
            return False
        if half:
            half()
        if self.fault == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    def error(self, path: object = None) -> OSError:
        number = FAULTS[self.fault]
        return OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Follow the changes of this process."""
        with pytest.MonkeyPatch.context() as patch:
            for name in (*CALLS, *REMOVALS):
                patch.setattr(os, name, self._call(name, getattr(os, name)))
            opened = self._open(io.open)
            patch.setattr(io, "open", opened)
            patch.setattr(builtins, "open", opened)
            patch.setattr(os, "open", self._os_open(os.open))
            patch.setattr(os, "write", self._os_write(os.write))
            patch.setattr(dualfuse_io, "_exchange", self._call("exchange", dualfuse_io._exchange))
            patch.setattr(safetensors.torch, "save_file", self._save_file(safetensors.torch.save_file))
            patch.setattr(tokenizers.Tokenizer, "save", self._save_tokenizer(tokenizers.Tokenizer.save))
            yield

    def _call(self, name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **options: Any) -> Any:
            directory = options.get("dir_fd")
            at = os.path.join(self.handles.get(directory, "/"), os.fsdecode(path)) if directory is not None else path
            is_change = isinstance(at, int) or os.path.lexists(at) != (name == "mkdir")
            if is_change and self.change(name, at):
                raise self.error(None if isinstance(path, int) else path)
            return do(path, *rest, **options)

        return call

    def _os_open(self, do: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            directory = options.get("dir_fd")
            at = os.path.join(self.handles.get(directory, "/"), os.fsdecode(path)) if directory is not None else path
            if flags & os.O_CREAT and not os.path.exists(at) and self.change("create", at):
                raise self.error(path)
            handle = do(path, flags, *rest, **options)
            self.handles[handle] = os.path.realpath(os.fsdecode(at))
            return handle

        return call

    def _os_write(self, do: Callable[..., int]) -> Callable[..., int]:
        def call(handle: int, data: bytes) -> int:
            if self.change("write", handle, lambda: do(handle, data[: len(data) // 2])):
                raise self.error()
            return do(handle, data)

        return call

    def _open(self, do: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
            if isinstance(path, int) or not set(mode) & set("wax+"):
                return do(path, mode, buffering, *rest, **options)
            if not os.path.exists(path) and self.change("create", path):
                raise self.error(path)
            raw = _File(do(path, mode.replace("t", "").replace("b", "") + "b", 0), self, os.fspath(path))
            if buffering == 0:
                return raw
            if "b" in mode:
                return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return io.TextIOWrapper(io.BufferedWriter(raw), *rest, **options)

        return call

    def _save_file(self, do: Callable[..., None]) -> Callable[..., None]:
        def call(tensors: Any, path: Any, *rest: Any, **options: Any) -> None:
            do(tensors, path, *rest, **options)
            if self.change("write", path, lambda: os.truncate(path, os.path.getsize(path) // 2)):
                number = FAULTS[self.fault]
                text = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
                raise safetensors.SafetensorError(text)

        return call

    def _save_tokenizer(self, do: Callable[..., None]) -> Callable[..., None]:
        def call(tokenizer: Any, path: Any, *rest: Any) -> None:
            do(tokenizer, path, *rest)
            if self.change("write", path, lambda: os.truncate(path, os.path.getsize(path) // 2)):
                raise Exception(f"{os.strerror(FAULTS[self.fault])} (os error {FAULTS[self.fault]})")

        return call


class _File(io.RawIOBase):
    """An unbuffered file whose writes are changes of a disk."""

    def __init__(self, raw: io.FileIO, disk: FaultyDisk, name: str) -> None:
        self.raw, self.disk, self.name = raw, disk, name
        disk.handles[raw.fileno()] = os.path.realpath(name)

    def write(self, data: Any, /) -> int:
        if self.disk.change("write", self.name, lambda: self.raw.write(bytes(data)[: len(data) // 2])):
            raise self.disk.error()
        return self.raw.write(data) or 0

    def truncate(self, size: int | None = None, /) -> int:
        return self.raw.truncate(size)

    def readinto(self, buffer: Any, /) -> int:
        return self.raw.readinto(buffer) or 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.raw.seek(offset, whence)

    def fileno(self) -> int:
        return self.raw.fileno()

    def readable(self) -> bool:
        return self.raw.readable()

    def writable(self) -> bool:
        return self.raw.writable()

    def seekable(self) -> bool:
        return self.raw.seekable()

    def close(self) -> None:
        if not self.closed:
            super().close()
            self.raw.close()


def count_changes(work: Callable[[], object], root: Path) -> list[str]:
    """Return the changes that ``work`` makes below ``root``, from a run in a process of its own."""
    log = root.with_name(f"{root.name}.changes")

    def measured() -> None:
        disk = FaultyDisk(root)
        with disk.installed():
            work()
        log.write_text(json.dumps(disk.changes))

    assert in_a_process(measured) == 0
    return json.loads(log.read_text())


def run_with_fault(work: Callable[[], object], root: Path, fault: str, at: int) -> str | None:
    """Run ``work`` in a process of its own with one fault, and return its error: None without one, "" if killed."""
    log = root.with_name(f"{root.name}.error")
    log.unlink(missing_ok=True)

    def faulty() -> None:
        try:
            with FaultyDisk(root, fault, at).installed():
                work()
        except BaseException as error:
            with suppress(OSError):
                log.write_text(f"{type(error).__name__}: {error}")
            os._exit(1)

    code = in_a_process(faulty)
    assert code in (0, 1, -signal.SIGKILL), code
    if code == -signal.SIGKILL:
        return ""
    return log.read_text() if code else None


def tree(root: Path) -> dict[str, bytes]:
    """Return the content of all files below ``root`` by relative path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
