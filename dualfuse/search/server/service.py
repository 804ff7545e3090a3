"""The state of a running service: its model, the index that answers, and the refresh that replaces it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

from dualfuse.errors import DualfuseError
from dualfuse.inference.explain import explain
from dualfuse.search.index import Index
from dualfuse.search.server.compute.copies import Copies
from dualfuse.search.server.compute.engine import Engine
from dualfuse.search.server.compute.thumbnails import Thumbnails
from dualfuse.search.server.http.problems import Problem
from dualfuse.search.server.metrics import Metrics
from dualfuse.search.server.options import ServerOptions
from dualfuse.search.server.schemas import SearchRequest
from dualfuse.search.server.searching import Search
from dualfuse.search.server.snapshot import Snapshot

logger = logging.getLogger(__name__)
KEPT_JOBS = 100


@dataclass
class Job:
    """A refresh of the index, as GET /v1/jobs/{id} reports it."""

    id: str
    status: str = "running"
    message: str = ""
    started: float = field(default_factory=time.time)
    ended: float | None = None
    embedded: int = 0
    skipped: int = 0
    version: str = ""


class Service:
    """Everything that the endpoints share."""

    def __init__(self, index: Index, options: ServerOptions, *, rebuild: Callable[[], Index], name: str) -> None:
        """``rebuild`` returns the index of the collection as it is now; ``name`` is that of the model, without path."""
        self.options, self.metrics, self.rebuild = options, Metrics(), rebuild
        self.engine = Engine(index.loaded, options, self.metrics, name)
        self.copies, self.thumbnails = Copies(), Thumbnails()
        self.snapshot = Snapshot.of(index)
        self.jobs: dict[str, Job] = {}
        self.is_ready = False
        self._refreshing: asyncio.Task[None] | None = None
        self.metrics.images.set(len(index))
        self.metrics.watch_cache("thumbnails", self.thumbnails.made)
        self.metrics.watch_cache("fingerprints", self.copies.marks)

    async def warm_up(self) -> None:
        """Run a search by text and by image, fusion and explain once, so that no user waits for a first call."""
        snapshot, engine = self.snapshot, self.engine
        first = next(iter(snapshot.names))
        _ = snapshot.fields
        bodies: list[dict[str, str | int]] = [{"text": "warm-up"}, {"id": first}]
        if engine.loaded.task.can_match:
            bodies.append({"text": "warm-up", "rerank": 4})
        for body in bodies:
            await Search(engine, snapshot, self.copies, SearchRequest.model_validate(body)).answer()
        await engine.warm_up()
        if engine.loaded.task.can_match:
            with suppress(DualfuseError):  # a model whose attention cannot be explained
                await engine.run(explain, engine.loaded, snapshot.read(first), "warm-up")
        self.copies.start(snapshot)
        self.is_ready = True

    def check_ready(self) -> Snapshot:
        """Return the snapshot that answers; ``Problem`` 503 before the warm-up has ended."""
        if not self.is_ready:
            raise Problem(503, "the service is warming up; try again in a few seconds", retry_after=2.0)
        return self.snapshot

    def refresh(self) -> Job:
        """Start a refresh, or return the one that runs."""
        running = next((job for job in self.jobs.values() if job.status == "running"), None)
        if running:
            return running
        job = Job(uuid4().hex[:16])
        self.jobs = dict([*self.jobs.items(), (job.id, job)][-KEPT_JOBS:])
        self._refreshing = asyncio.get_running_loop().create_task(self._refresh(job))
        return job

    async def _refresh(self, job: Job) -> None:
        """Build the new index beside the old one, which answers until the new one takes over."""
        try:
            index = await asyncio.get_running_loop().run_in_executor(None, self.rebuild)
            snapshot = Snapshot.of(index)
            _ = snapshot.names, snapshot.fields, snapshot.newest
            self.snapshot = snapshot
            self.copies.start(snapshot)
            self.metrics.images.set(len(index))
            job.embedded, job.skipped, job.version = index.embedded, len(index.skipped), snapshot.version
            job.status = "done"
        except Exception as error:
            logger.exception("the index could not be refreshed")
            job.status = "failed"
            # the message may name a path of the server
            job.message = f"{type(error).__name__}: the reason is in the log of the service"
        finally:
            job.ended = time.time()

    async def drain(self) -> None:
        """Wait for running requests and refreshes."""
        self.is_ready = False
        if self._refreshing is not None:
            await asyncio.wait([self._refreshing])
        await self.engine.drain()
        self.copies.stop()
