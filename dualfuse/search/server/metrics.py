"""Prometheus metrics of a service."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64)


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
        self.images = Gauge("dualfuse_index_images", "Images in the index", registry=self.registry)

    def observe_batch(self, stage: str, size: int, seconds: float) -> None:
        """Record a batch of a stage."""
        self.batch_size.labels(stage).observe(size)
        self.stage_seconds.labels(stage).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
