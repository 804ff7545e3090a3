"""Micro-batching: requests of different users become one call of the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
Future = asyncio.Future


@dataclass(frozen=True)
class BatchingPolicy:
    """How long an item waits for others, and how many share a batch."""

    window: float
    """Seconds; 0: only items that are submitted at the same moment share a batch."""
    max_batch: int


class Batcher(Generic[In, Out]):
    """Collects items for ``policy.window`` seconds and runs them together, in the order of arrival.

    While one batch runs, the next one collects: under load the window costs nothing. ``run`` takes a list of items and
    returns one result each; it is called in ``executor``, one batch at a time. If it raises, every item of the batch is
    run again on its own, so that one user's input cannot fail the requests of others.
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
        self._waiting: list[tuple[In, Future[Out]]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """The number of items in the queue."""
        return len(self._waiting)

    async def submit(self, item: In) -> Out:
        """Return the result of an item; raises what ``run`` returned or raised for it."""
        (result,) = await self.submit_many([item])
        if isinstance(result, Exception):
            raise result
        return result

    async def submit_many(self, items: Sequence[In]) -> list[Out | Exception]:
        """Return the results of several items of one request, which may share batches with other requests."""
        loop = asyncio.get_running_loop()
        futures: list[Future[Out]] = [loop.create_future() for _ in items]
        self._waiting += zip(items, futures, strict=True)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._work())
        try:
            results = await asyncio.gather(*futures, return_exceptions=True)
        finally:  # cancelled: what still waits is not computed
            self._waiting = [entry for entry in self._waiting if not entry[1].done()]
        return [result if isinstance(result, Exception) else _checked(result) for result in results]

    async def drain(self) -> None:
        """Wait until nothing is queued or running."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        window = self._policy.window if self._policy.max_batch > 1 else 0.0
        await asyncio.sleep(window)  # 0: what was submitted in this turn of the event loop
        while self._waiting:
            batch, self._waiting = self._waiting[: self._policy.max_batch], self._waiting[self._policy.max_batch :]
            if batch := [entry for entry in batch if not entry[1].done()]:  # a client may have gone
                await self._run_batch(batch)

    async def _run_batch(self, batch: list[tuple[In, Future[Out]]]) -> None:
        started = time.perf_counter()
        results = await self._results([item for item, _ in batch])
        self._observe(len(batch), time.perf_counter() - started)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    async def _results(self, items: list[In]) -> Sequence[Out | Exception]:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, items)
        except Exception as error:
            if len(items) == 1:
                return [error]
            return [(await self._results([item]))[0] for item in items]


def _checked(result: Out | BaseException) -> Out:
    if isinstance(result, BaseException):  # KeyboardInterrupt and the like
        raise result
    return result
