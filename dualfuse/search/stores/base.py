"""What an index needs of a place that holds embeddings: the protocol that every store implements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dualfuse.search.stores.filters import Filter, Metadata
from dualfuse.search.stores.filters import Value as Value
from dualfuse.search.stores.filters import matches as matches


@dataclass(frozen=True)
class Match:
    """A stored embedding that a search returned: its name, and its inner product with the query."""

    name: str
    score: float


class VectorStore(Protocol):
    """Embeddings of one model, each with a unique name and metadata.

    ``dualfuse.testing.check_store`` tests an implementation against this contract.
    """

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model that made the embeddings; a store never mixes embeddings of several models."""
        ...

    @property
    def location(self) -> str:
        """Where the embeddings are stored, for messages; empty if they are lost with the process."""
        ...

    def entries(self) -> Mapping[str, Metadata]:
        """Return the metadata of every stored embedding by name."""
        ...

    def count(self, where: Filter | None = None) -> int:
        """Return the number of embeddings, or of those that match a filter."""
        ...

    def add(self, names: Sequence[str], embeddings: Tensor, metadata: Sequence[Metadata]) -> None:
        """Store B embeddings (B, D), float32; one whose name is already stored replaces it.

        Raises ``DualfuseError`` if the numbers of names, embeddings and metadata differ.
        """
        ...

    def remove(self, names: Sequence[str]) -> None:
        """Delete embeddings by name; unknown names are ignored."""
        ...

    def search(self, embeddings: Tensor, k: int, where: Filter | None = None) -> list[list[Match]]:
        """Return the k best matches of each of Q queries (Q, D), best first.

        With a filter the result is the same as if the store held the matching embeddings only. Fewer than k are
        returned if there are no more.
        """
        ...

    def flush(self) -> None:
        """Make all changes since the last flush durable, together or not at all."""
        ...
