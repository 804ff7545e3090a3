"""A third party's store: a dictionary and a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.search.stores.base import Filter, Match, Matches, Metadata, matches


class ToyStore:
    """Lives as long as the process."""

    location = ""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.items: dict[str, tuple[Tensor, Metadata]] = {}

    def entries(self) -> Mapping[str, Metadata]:
        return {name: metadata for name, (_, metadata) in self.items.items()}

    def count(self, where: Filter | None = None) -> int:
        return sum(matches(metadata, where or {}) for _, metadata in self.items.values())

    def add(self, names: Sequence[str], embeddings: Tensor, metadata: Sequence[Metadata]) -> None:
        if not len(names) == len(embeddings) == len(metadata):
            raise DualfuseError("give as many names as embeddings and metadata")
        self.items |= dict(zip(names, zip(embeddings, metadata, strict=True), strict=True))

    def remove(self, names: Sequence[str]) -> None:
        self.items = {name: item for name, item in self.items.items() if name not in names}

    def search(self, embeddings: Tensor, k: int, where: Filter | None = None) -> Matches:
        found = [
            sorted(
                (
                    Match(n, float(query @ e))
                    for n, (e, metadata) in self.items.items()
                    if matches(metadata, where or {})
                ),
                key=lambda match: -match.score,
            )[:k]
            for query in embeddings
        ]
        return Matches(found, fingerprint=self.fingerprint)

    def flush(self) -> None:
        pass
