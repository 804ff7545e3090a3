"""Near copies among hits: re-encoded, resized or slightly edited images, by the fingerprints that doctor uses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dualfuse.data.image.decode import decode
from dualfuse.doctor.fingerprint import fingerprint, group, near_pairs
from dualfuse.search.server.cache import LRUCache
from dualfuse.search.server.snapshot import Snapshot

CACHED = 100_000  # fingerprints, of about 200 bytes each


class Copies:
    """Fingerprints of images of the collection, computed when a search first folds them."""

    def __init__(self) -> None:
        """Nothing is computed yet."""
        self._fingerprints = LRUCache[tuple[str, object], tuple[int, bytes]](CACHED)
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="copies")

    async def groups(self, snapshot: Snapshot, names: Sequence[str]) -> dict[str, int]:
        """Return the number of the group of each image that has a near copy among ``names``."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._groups, snapshot, names)

    def _groups(self, snapshot: Snapshot, names: Sequence[str]) -> dict[str, int]:
        readable = [(name, mark) for name in names if (mark := self._fingerprint(snapshot, name))]
        if len(readable) < 2:
            return {}
        hashes = np.array([mark[0] for _, mark in readable], dtype=np.uint64)
        colors = np.stack([np.frombuffer(mark[1], dtype=np.uint8) for _, mark in readable])
        groups = group(near_pairs(hashes, colors))
        return {readable[member][0]: number for number, members in enumerate(groups) for member in members}

    def _fingerprint(self, snapshot: Snapshot, name: str) -> tuple[int, bytes] | None:
        key = (name, snapshot.entries.get(name, {}).get("stamp"))
        if (cached := self._fingerprints.get(key)) is not None:
            return cached
        try:
            pixels = decode(snapshot.index.image(name)).permute(1, 2, 0).contiguous().numpy()
        except (OSError, ValueError, KeyError):
            return None
        mark = fingerprint(pixels)
        self._fingerprints.put(key, mark)
        return mark
