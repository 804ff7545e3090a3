"""Micro-batching: requests of different users become one call of the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from dualfuse.search.server.problems import Problem

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class BatchingPolicy:
    """How long an item waits for others, how many share a batch, and how many may wait."""

    window: float
    """Seconds."""
    max_batch: int
    max_queue: int


class Batcher(Generic[In, Out]):
    """Collects items for ``policy.window`` seconds and runs them together, in the order of arrival.

    While one batch runs, the next one collects: under load the window costs nothing. ``run`` takes a list of items and
    returns one result each; it is called in ``executor``, one batch at a time.
    """

    def __init__(
        self,
        run: Callable[[Sequence[In]], Sequence[Out | Exception]],
        executor: Executor,
        policy: BatchingPolicy,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        """``observe`` is called with the size and the seconds of every batch."""
        self._run, self._executor, self._policy, self._observe = run, executor, policy, observe
        self._waiting: list[tuple[In, asyncio.Future[Out]]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """The number of items in the queue."""
        return len(self._waiting)

    async def submit(self, item: In) -> Out:
        """Return the result of an item; ``Problem`` 429 if the queue is full."""
        return (await self.submit_many([item]))[0]

    async def submit_many(self, items: Sequence[In]) -> list[Out]:
        """Return the results of several items of one request, which may share batches with other requests."""
        if len(self._waiting) + len(items) > max(self._policy.max_queue, len(items)):
            raise Problem(
                429, "too many requests are waiting; repeat this one after the seconds of Retry-After", retry_after=1.0
            )
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        self._waiting += zip(items, futures, strict=True)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._work())
        return list(await asyncio.gather(*futures))

    async def drain(self) -> None:
        """Wait until nothing is queued or running."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        if self._policy.max_batch > 1 and self._policy.window:
            await asyncio.sleep(self._policy.window)
        while self._waiting:
            batch, self._waiting = self._waiting[: self._policy.max_batch], self._waiting[self._policy.max_batch :]
            batch = [(item, future) for item, future in batch if not future.done()]  # a client may have gone
            if not batch:
                continue
            started = time.perf_counter()
            try:
                results = await loop.run_in_executor(self._executor, self._run, [item for item, _ in batch])
            except Exception as error:
                results = [error] * len(batch)
            self._observe(len(batch), time.perf_counter() - started)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
