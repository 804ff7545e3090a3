"""Map a function over items in threads, keeping their order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int = 0
) -> Iterator[tuple[Item, Result]]:
    """Return (item, ``function(item)``) for all ``items``, which are consumed only a little ahead of the results.

    ``num_workers`` threads run, with 0 one per processor (at most 16). Meant for images: Pillow decodes without the
    GIL.
    """
    num_workers = num_workers or min(16, os.cpu_count() or 1)
    pending: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(num_workers)
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) > 4 * num_workers:
                first, future = pending.popleft()
                yield first, future.result()
        for first, future in pending:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
