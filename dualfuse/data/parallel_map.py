"""Runs a function on many things in threads and gives the results in the order of the things."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[[Thing], Result], things: Iterable[Thing], workers: int = 0
) -> Iterator[tuple[Thing, Result]]:
    """Return (thing, ``function(thing)``) for all ``things``, which are taken only a little ahead of the results.

    ``workers`` threads, 0: one per processor. Meant for images: Pillow decodes without holding Python's lock.
    """
    workers = workers or min(16, os.cpu_count() or 1)
    waiting: deque[tuple[Thing, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for thing in things:
            waiting.append((thing, pool.submit(function, thing)))
            if len(waiting) > 4 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
