"""The options of a service, and the limits of what it accepts."""

from __future__ import annotations

from dataclasses import dataclass, field

from dualfuse.errors import DualfuseError

MAX_BATCH = 64
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Limits:
    """Bounds of a request; a request beyond one is answered with status 413 or 422."""

    upload_bytes: int = 10 << 20
    """Bytes of an uploaded image."""
    upload_pixels: int = 40_000_000
    """Pixels of an uploaded image."""
    text_bytes: int = 4096
    """UTF-8 bytes of a text."""
    body_bytes: int = 48 << 20
    """Bytes of a whole request."""
    top: int = 1000
    """Hits of a search."""
    rerank: int = 256
    """Candidates that fusion re-ranks."""
    inputs: int = 256
    """Texts, images or pairs of one request."""
    depth: int = 10_000
    """Hits that can be reached by paging."""
    body_seconds: float = 30.0
    """Seconds in which the body of a request has to arrive."""
    pending_bytes: int = 256 << 20
    """Bytes of all request bodies that are being read or answered; further ones are answered with status 429."""


@dataclass(frozen=True)
class ServerOptions:
    """How requests are batched, bounded and guarded."""

    token: str = ""
    """Token that requests send as ``Authorization: Bearer TOKEN``; empty: none is asked for."""
    hosts: tuple[str, ...] = ()
    """Host names that requests may be addressed to; empty: any."""
    rerank: int | None = 0
    """Candidates that fusion re-ranks if a request does not say; None: as many as helped on the model's validation
    set."""
    budget_ms: float = 500.0
    """Milliseconds after which re-ranking stops; the answer reports it."""
    window_ms: float = 3.0
    """Milliseconds that a request waits for others to share its batch."""
    max_batch: int = 64
    """Requests of one batch; 1: no batching."""
    max_queue: int = 256
    """Requests that may wait or run; the next one is answered with status 429."""
    query_cache_mb: int = 32
    """MiB of embeddings of queries that are kept; 0: none."""
    state_cache_mb: int = 512
    """MiB of unimodal states of re-ranked images that are kept, in half precision; 0: none."""
    log_queries: bool = False
    """Write the texts of queries to the log."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Validate the numbers."""
        numbers = ("budget_ms", "window_ms", "query_cache_mb", "state_cache_mb")
        if negative := [name for name in numbers if not getattr(self, name) >= 0]:
            raise DualfuseError(f"{negative[0]} is {getattr(self, negative[0])}; give 0 or more")
        if self.rerank is not None and not 0 <= self.rerank <= self.limits.rerank:
            raise DualfuseError(f"rerank is {self.rerank}; re-rank 0 to {self.limits.rerank} candidates")
        if not 1 <= self.max_batch <= MAX_BATCH or self.max_queue < 1:
            raise DualfuseError(
                f"max_batch is {self.max_batch} and max_queue {self.max_queue}; give 1 to {MAX_BATCH}, and 1 or more"
            )


def allowed_hosts(host: str, token: str, others: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the names by which a service is addressed: any with a token, its own without."""
    return () if token else (*LOOPBACK, host.lower(), *(name.lower() for name in others))


def check_address(host: str, token: str) -> None:
    """Raise ``DualfuseError`` for an address that others can reach without a token."""
    if host not in LOOPBACK and not token:
        raise DualfuseError(
            f"--host {host} can be reached by others: protect it by --token-file FILE with a secret of 16 characters "
            "or more, or serve on 127.0.0.1 behind a proxy that checks who asks"
        )
    if token and len(token) < 16:
        raise DualfuseError(f"the token has {len(token)} characters; give 16 or more, such as `openssl rand -hex 16`")
