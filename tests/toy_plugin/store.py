"""A vector store in one pickle-free numpy file per model, searched by a loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dualfuse import DualfuseError
from dualfuse.search.stores.base import Filter, Match, Matches, Metadata, matches


class ToyStore:
    """Embeddings as lists of numbers in a JSON file."""

    def __init__(self, fingerprint: str, folder: Path) -> None:
        self.fingerprint, self._path = fingerprint, folder / f"{fingerprint}.json"
        self._items: dict[str, tuple[list[float], Metadata]] = {}
        if self._path.is_file():
            self._items = {name: tuple(item) for name, item in json.loads(self._path.read_text()).items()}

    @property
    def location(self) -> str:
        return str(self._path)

    def entries(self) -> dict[str, Metadata]:
        return {name: metadata for name, (_, metadata) in self._items.items()}

    def count(self, where: Filter | None = None) -> int:
        return sum(matches(metadata, where or {}) for _, metadata in self._items.values())

    def add(self, names: Sequence[str], embeddings: Tensor, metadata: Sequence[Metadata]) -> None:
        if not len(names) == len(embeddings) == len(metadata):
            raise DualfuseError(f"{len(names)} names, {len(embeddings)} embeddings, metadata of {len(metadata)}")
        for name, embedding, fields in zip(names, embeddings.tolist(), metadata, strict=True):
            self._items[name] = embedding, fields

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            self._items.pop(name, None)

    def search(self, embeddings: Tensor, k: int, where: Filter | None = None) -> Matches:
        items = {name: vector for name, (vector, metadata) in self._items.items() if matches(metadata, where or {})}
        scores = ({name: float(query @ torch.tensor(vector)) for name, vector in items.items()} for query in embeddings)
        found = ([Match(name, one[name]) for name in sorted(one, key=lambda name: -one[name])[:k]] for one in scores)
        return Matches(found, fingerprint=self.fingerprint)

    def flush(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._items))


def open_store(fingerprint: str) -> ToyStore:
    """Open the store of a model in the current folder, as ``dualfuse search --store`` calls it."""
    return ToyStore(fingerprint, Path("toy-store"))
