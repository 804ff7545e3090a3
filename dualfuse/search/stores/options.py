"""The choice of a store: its kind, and how it is searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dualfuse.errors import DualfuseError
from dualfuse.search.stores.base import VectorStore
from dualfuse.search.stores.codecs import PRECISIONS
from dualfuse.search.stores.exact import ExactStore

KINDS = ("exact", "pgvector")
DATABASE = ("postgresql://", "postgres://")


@dataclass(frozen=True)
class StoreOptions:
    """A store that ships, which :meth:`open` opens for one collection."""

    kind: str = "exact"
    """"exact"; "pgvector": PostgreSQL at the address of the environment (DATABASE_URL, or PGHOST and the other
    variables of libpq); or the address itself, postgresql://..."""
    precision: str = "fp32"
    """What is scanned first: "fp32", "fp16", "int8" (all with the same result) or "bits" (approximate)."""
    dimensions: int = 0
    """First dimensions of the embeddings that are scanned; 0: all. Fewer are approximate, and meant for embeddings that
    were trained for it (Matryoshka)."""

    def __post_init__(self) -> None:
        """Validate the options."""
        if self.kind not in KINDS and not self.kind.startswith(DATABASE):
            raise DualfuseError(f"the store is {self.kind!r}; give {', '.join(KINDS)}, or postgresql://...")
        if self.precision not in PRECISIONS or self.dimensions < 0:
            given = f"precision is {self.precision!r} and dimensions {self.dimensions}"
            raise DualfuseError(f"{given}; give {', '.join(PRECISIONS)}, and 0 or more")
        if not self.is_local and (self.precision != "fp32" or self.dimensions):
            raise DualfuseError("precision and dimensions are of the exact store; leave them out for PostgreSQL")

    @classmethod
    def of(cls, text: str, precision: str = "fp32", dimensions: int = 0) -> StoreOptions | None:
        """Return the options of a store that ships; None for the address of a plug-in's, which has no options."""
        if not text or text in KINDS or text.startswith(DATABASE):
            return cls(text or "exact", precision, dimensions)
        if precision != "fp32" or dimensions:
            raise DualfuseError(f"precision and dimensions are of the exact store, not of {text}; leave them out")
        return None

    @property
    def is_local(self) -> bool:
        """Whether the embeddings are in files."""
        return self.kind == "exact"

    def open(self, fingerprint: str, paths: Sequence[Path]) -> VectorStore:
        """Open the store of a model and a collection; ``paths`` are the folders for its files, and their names its own.

        Raises ``MissingExtraError`` without the extra that the store needs.
        """
        if self.kind == "exact":
            return ExactStore.open(fingerprint, paths, precision=self.precision, dimensions=self.dimensions)
        from dualfuse.search.stores.pgvector import PgvectorStore

        address = "" if self.kind == "pgvector" else self.kind
        return PgvectorStore.open(fingerprint, address, paths[-1].stem)
