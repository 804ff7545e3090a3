"""What an index needs of a place that holds embeddings: the protocol that every store implements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.search.stores.filters import Filter, Metadata
from dualfuse.search.stores.filters import Value as Value
from dualfuse.search.stores.filters import matches as matches


@dataclass(frozen=True)
class Match:
    """A stored embedding that a search returned: its name, and its inner product with the query."""

    name: str
    score: float


class Matches(list[list[Match]]):
    """The answer of a store: for each query its matches, best first; and which embeddings it was computed from."""

    def __init__(
        self, matches: Iterable[list[Match]] = (), *, fingerprint: str, version: str = "", exact: bool = True
    ) -> None:
        """``fingerprint`` is the store's, ``version`` that of its content; ``exact``: no match can be missing."""
        super().__init__(matches)
        self.fingerprint, self.version, self.exact = fingerprint, version, exact


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

        Raises ``DualfuseError`` if the numbers of names, embeddings and metadata differ, if a name is given twice, and
        for another width D than that of the stored embeddings.
        """
        ...

    def remove(self, names: Sequence[str]) -> None:
        """Delete embeddings by name; unknown names are ignored."""
        ...

    def search(self, embeddings: Tensor, k: int, where: Filter | None = None) -> Matches:
        """Return the k best matches of each of Q queries (Q, D), best first, with fingerprint and version.

        With a filter the result is the same as if the store held the matching embeddings only, and always exact. Fewer
        than k are returned if there are no more.
        """
        ...

    def flush(self) -> None:
        """Make all changes since the last flush durable, together or not at all."""
        ...


def check_batch(names: Sequence[str], embeddings: Tensor, metadata: Sequence[Metadata], width: int) -> None:
    """Raise ``DualfuseError`` if a batch cannot be added to a store whose embeddings have ``width`` (0: any)."""
    if not len(names) == len(set(names)) == len(embeddings) == len(metadata):
        raise DualfuseError(
            f"{len(names)} names ({len(set(names))} of them different), {len(embeddings)} embeddings and metadata "
            f"of {len(metadata)}; give as many of each, and every name once"
        )
    check_width(embeddings, width)


def check_width(embeddings: Tensor, width: int) -> None:
    """Raise ``DualfuseError`` unless the embeddings are (B, D) of the width of a store (0: any)."""
    if embeddings.ndim != 2 or (width and len(embeddings) and embeddings.shape[1] != width):
        raise DualfuseError(
            f"embeddings of shape {tuple(embeddings.shape)} do not fit a store of width {width}; "
            "use the model that made the stored ones"
        )
