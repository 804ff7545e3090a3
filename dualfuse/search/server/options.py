"""The options of a service, and the limits of what it accepts."""

from __future__ import annotations

from dataclasses import dataclass, field

from dualfuse.errors import DualfuseError

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


@dataclass(frozen=True)
class ServerOptions:
    """How requests are batched, bounded and guarded."""

    token: str = ""
    """Token that requests send as ``Authorization: Bearer TOKEN``; empty: none is asked for."""
    rerank: int = 0
    """Candidates that fusion re-ranks if a request does not say."""
    budget_ms: float = 500.0
    """Milliseconds after which re-ranking stops; the answer reports it."""
    window_ms: float = 3.0
    """Milliseconds that a request waits for others to share its batch."""
    max_batch: int = 64
    """Requests of one batch; 1: no batching."""
    max_queue: int = 256
    """Requests that may wait; the next one is answered with status 429."""
    cached_queries: int = 4096
    """Embeddings of queries that are kept."""
    cached_states: int = 512
    """Unimodal states of re-ranked images that are kept, in half precision."""
    log_queries: bool = False
    """Write the texts of queries to the log."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Validate the numbers."""
        if min(self.budget_ms, self.window_ms, self.cached_queries, self.cached_states, self.rerank) < 0:
            raise DualfuseError("budget, window, caches and rerank of a service are 0 or more")
        if not 1 <= self.max_batch <= self.max_queue:
            raise DualfuseError(
                f"max_batch is {self.max_batch} and max_queue {self.max_queue}; give 1 <= max_batch <= max_queue"
            )


def check_address(host: str, token: str) -> None:
    """Raise ``DualfuseError`` for an address that others can reach without a token."""
    if host not in LOOPBACK and not token:
        raise DualfuseError(
            f"--host {host} can be reached by others: protect it by --token-file FILE with a secret of 16 characters "
            "or more, or serve on 127.0.0.1 behind a proxy that checks who asks"
        )
    if token and len(token) < 16:
        raise DualfuseError(f"the token has {len(token)} characters; give 16 or more, such as `openssl rand -hex 16`")
