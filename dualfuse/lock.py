"""Locks of output folders: one process at a time writes to a folder, and another one learns which."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dualfuse.errors import DualfuseError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems without locks."""
POLL = 0.2  # seconds
_held: dict[Path, int] = {}
"""Locked files and the process that holds each: the system lets one process lock a file twice."""
_guard = threading.Lock()


@contextmanager
def lock(path: Path, folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of ``folder``, which is the file ``path``, while the block runs.

    The lock is a POSIX record lock on the file, whose content names the host and the process that holds it. The system
    releases it when the process ends, however it ends, and it excludes other hosts where the file system has locks
    across hosts (NFS 4, Lustre). So a file that a killed process left is recognized and replaced. If another process
    holds the lock, wait for it, or raise ``DualfuseError`` with its host and process number. Folders are created where
    they are missing; in a folder that is read-only there is nothing to lock.
    """
    path = path.parent.resolve() / path.name
    created = [parent for parent in path.parents if not parent.exists()]
    if not created and not os.access(path.parent, os.W_OK):
        yield
        return
    handle = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path)
        if handle is None and wait:
            logger.info("%s: waiting for %s", folder, _holder(path))
        while handle is None:
            if not wait:
                raise DualfuseError(
                    f"{folder} is in use by {_holder(path)}; wait until it ends, or give another folder for the output"
                )
            time.sleep(POLL)
            handle = _acquire(path)
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                path.unlink()  # while it is locked, so that nobody else's file is removed
            _held.pop(path, None)
            os.close(handle)
        for parent in created:  # if nothing was written
            with suppress(OSError):
                parent.rmdir()


def _acquire(path: Path) -> int | None:
    """Return the descriptor of the locked file, or None if another process or thread holds it."""
    with _guard:
        return None if _held.get(path) == os.getpid() else _open_locked(path)


def _open_locked(path: Path) -> int | None:
    while True:
        is_locked = False
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            is_locked = _lock(handle)
            if not is_locked:
                os.close(handle)
                return None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    os.ftruncate(handle, 0)
                    os.write(handle, f"process {os.getpid()} on {socket.gethostname()} ({_command()})\n".encode())
                    _held[path] = os.getpid()
                    return handle
            os.close(handle)  # the former holder has removed this file meanwhile
        except OSError as error:
            if is_locked:
                path.unlink(missing_ok=True)
            os.close(handle)
            raise OSError(error.errno, error.strerror, str(path)) from error


def _lock(handle: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in UNSUPPORTED
    return True


def _holder(path: Path) -> str:
    """Return "process 4711 on host (command)"; must not be called by the holder, whose lock would be released."""
    if _held.get(path) == os.getpid():
        return f"this process ({os.getpid()} on {socket.gethostname()})"
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()[:200] or "another process"
    except OSError:
        return "another process"


def _command() -> str:
    return " ".join([Path(sys.argv[0] or "python").name, *sys.argv[1:2]])
