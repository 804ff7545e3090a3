"""Near copies among hits: re-encoded, resized or slightly edited images, by the fingerprints that doctor uses."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from dualfuse.doctor.fingerprint import COLOR_DISTANCE, HASH_DISTANCE, fingerprint
from dualfuse.search.server.compute.cache import LRUCache
from dualfuse.search.server.compute.thumbnails import small_image
from dualfuse.search.server.snapshot import Snapshot

CACHED = 200 << 20  # bytes; half a million fingerprints
SIDE = 256  # pixels of the longer side at which fingerprints are computed
NICE = 10  # of the thread that fingerprints the collection, so that it takes what requests leave

PAUSE = 5.0  # seconds after a start or a refresh, in which first queries come
FEW = 512  # hashes that are compared all at once

Mark = tuple[int, bytes]


class Copies:
    """Fingerprints of images of the collection, computed in the background, or when a search first folds them."""

    def __init__(self) -> None:
        """Nothing is computed yet."""
        self.marks = LRUCache[tuple[str, str], Mark](CACHED, lambda mark: 100)
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="copies")
        self._stop = threading.Event()
        self._background: threading.Thread | None = None

    def start(self, snapshot: Snapshot) -> None:
        """Fingerprint the collection in the background; stops the thread that did so for an older snapshot."""
        self._stop.set()
        self._stop = threading.Event()
        self._background = threading.Thread(
            target=self._fill, args=(snapshot, self._stop), name="fingerprints", daemon=True
        )
        self._background.start()

    async def representatives(self, snapshot: Snapshot, names: Sequence[str], *, compute: bool) -> Mapping[str, int]:
        """Return for each image that is a near copy of an earlier one in ``names`` the position of the first such.

        The result for the first images does not depend on those that follow, so pages of hits fit together. With
        ``compute`` False, only images that are fingerprinted already take part, and nothing is read.
        """
        if not compute and len(names) <= FEW:
            return self._representatives(snapshot, names, compute)  # faster than to change threads
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, self._representatives, snapshot, names, compute
        )

    def stop(self) -> None:
        """Stop the threads."""
        self._stop.set()
        if self._background is not None:
            self._background.join()
        self._executor.shutdown()

    def _representatives(self, snapshot: Snapshot, names: Sequence[str], compute: bool) -> dict[str, int]:
        if not compute and not len(self.marks):
            return {}
        marks = [self._mark(snapshot, name, compute) for name in names]
        positions = [position for position, mark in enumerate(marks) if mark]
        hashes = np.array([mark[0] for mark in marks if mark], dtype=np.uint64)
        colors = np.array([np.frombuffer(mark[1], np.uint8) for mark in marks if mark], dtype=np.int16)
        found, firsts = dict[str, int](), list[int]()  # firsts: rows that are not a copy of an earlier one
        if len(positions) < 2 or (len(positions) <= FEW and not _has_near(hashes)):
            return found
        for row, position in enumerate(positions):
            near = np.bitwise_count(hashes[firsts] ^ hashes[row]) <= HASH_DISTANCE
            candidates = [first for first, is_near in zip(firsts, near, strict=True) if is_near]
            copied = [each for each in candidates if np.abs(colors[each] - colors[row]).max() <= COLOR_DISTANCE]
            if copied:
                found[names[position]] = positions[copied[0]]
            else:
                firsts.append(row)
        return found

    def _mark(self, snapshot: Snapshot, name: str, compute: bool) -> Mark | None:
        if (mark := self.marks.get(snapshot.key(name))) is not None or not compute:
            return mark
        try:
            mark = fingerprint(np.asarray(small_image(snapshot.read_name(name), SIDE)))
        except (OSError, ValueError):
            return None
        self.marks.put(snapshot.key(name), mark)
        return mark

    def _fill(self, snapshot: Snapshot, stop: threading.Event) -> None:
        with suppress(OSError, AttributeError):  # Linux: of this thread alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        stop.wait(PAUSE)
        for name in snapshot.entries:
            if stop.is_set():
                return
            self._mark(snapshot, name, compute=True)


def _has_near(hashes: np.ndarray) -> bool:
    """Whether two of N hashes are near each other; most answers have no near copies, and this tells so quickly."""
    return int(np.count_nonzero(np.bitwise_count(hashes[:, None] ^ hashes) <= HASH_DISTANCE)) > len(hashes)
