"""Prometheus metrics of a service."""

from __future__ import annotations

from collections.abc import Sized
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Queue(Protocol):
    """Something in which items wait."""

    @property
    def waiting(self) -> int:
        """The number of items."""
        ...


class Cache(Sized, Protocol):
    """Something that holds values of so many bytes."""

    @property
    def bytes(self) -> int:
        """The bytes of all values."""
        ...


class Metrics:
    """Queue lengths, batch sizes, seconds per stage, and refused requests; each service has a registry of its own."""

    def __init__(self) -> None:
        """Register all metrics."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dualfuse_requests", "Requests by endpoint and status", ("endpoint", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "dualfuse_request_seconds", "Seconds per request", ("endpoint",), buckets=SECONDS, registry=self.registry
        )
        self.batch_size = Histogram(
            "dualfuse_batch_size", "Items per batch", ("stage",), buckets=SIZES, registry=self.registry
        )
        self.stage_seconds = Histogram(
            "dualfuse_stage_seconds", "Seconds per batch", ("stage",), buckets=SECONDS, registry=self.registry
        )
        self.queue = Gauge("dualfuse_queue_length", "Waiting items", ("stage",), registry=self.registry)
        self.refused = Counter(
            "dualfuse_refused_requests", "Requests refused by reason", ("reason",), registry=self.registry
        )
        self.cache_hits = Counter("dualfuse_cache_hits", "Embeddings of queries from the cache", registry=self.registry)
        self.cache_bytes = Gauge("dualfuse_cache_bytes", "Bytes of a cache", ("cache",), registry=self.registry)
        self.cache_entries = Gauge("dualfuse_cache_entries", "Values in a cache", ("cache",), registry=self.registry)
        self.pending = Gauge("dualfuse_pending_requests", "Requests that wait or run", registry=self.registry)
        self.budget_exceeded = Counter(
            "dualfuse_budget_exceeded", "Searches whose re-ranking the time budget cut short", registry=self.registry
        )
        self.images = Gauge("dualfuse_index_images", "Images in the index", registry=self.registry)

    def watch_queue(self, stage: str, queue: Queue) -> None:
        """Read the length of a queue whenever the metrics are read."""
        self.queue.labels(stage).set_function(lambda: queue.waiting)

    def watch_cache(self, name: str, cache: Cache) -> None:
        """Read the size of a cache whenever the metrics are read."""
        self.cache_bytes.labels(name).set_function(lambda: cache.bytes)
        self.cache_entries.labels(name).set_function(lambda: len(cache))

    def observe_batch(self, stage: str, size: int, seconds: float) -> None:
        """Record a batch of a stage."""
        self.batch_size.labels(stage).observe(size)
        self.stage_seconds.labels(stage).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
