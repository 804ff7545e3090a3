"""The vectors of a collection while it is being embedded: begins with what was kept, and keeps what is added."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from dualfuse.search.collection import Collection
from dualfuse.search.store import Kept, Store

SAVE_EVERY = 60.0  # seconds; what was embedded since is lost when the power is


class Growing:
    """Numbers of pictures in a collection and their vectors, in memory and in a store."""

    def __init__(self, collection: Collection, store: Store) -> None:
        """Begins with the vectors of all pictures that have not changed since the store was written."""
        self.collection, self.store = collection, store
        self._numbers: list[int] = []
        self._parts: list[Tensor] = []  # each (B, D), together in the order of the numbers
        self.place, self._is_saved, self._saved_at = None, True, monotonic()
        found = store.read()
        if found:
            kept, self.place = found
            self._begin(kept)

    def __len__(self) -> int:
        """The number of pictures that have a vector."""
        return len(self._numbers)

    def missing(self) -> tuple[int, ...]:
        """Lists the pictures without a vector."""
        there = set(self._numbers)
        return tuple(number for number in range(len(self.collection)) if number not in there)

    def add(self, numbers: Sequence[int], vectors: Tensor) -> None:
        """Takes the vectors (B, D) of B more pictures, and saves everything now and then."""
        if numbers:
            self._numbers += numbers
            self._parts.append(vectors)
            self._is_saved = False
        if monotonic() - self._saved_at >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Writes everything, unless the store holds it already; ``place`` is then its file, None if it has none."""
        if not self._is_saved and self._numbers:
            numbers, vectors = self.sorted()
            names, stamps = self.collection.names, self.collection.stamps
            kept = Kept(tuple(names[n] for n in numbers), tuple(stamps[n] for n in numbers), vectors)
            self.place, self._is_saved = self.store.write(kept), True
        self._saved_at = monotonic()

    def sorted(self) -> tuple[tuple[int, ...], Tensor]:
        """Gives N numbers, ascending, and their vectors (N, D)."""
        order = np.argsort(np.array(self._numbers), kind="stable")
        return tuple(self._numbers[place] for place in order.tolist()), torch.cat(self._parts)[torch.from_numpy(order)]

    def _begin(self, kept: Kept) -> None:
        row_of = {picture: row for row, picture in enumerate(zip(kept.names, kept.stamps, strict=True))}
        pictures = enumerate(zip(self.collection.names, self.collection.stamps, strict=True))
        rows = {number: row_of[picture] for number, picture in pictures if picture in row_of}
        self._numbers, self._parts = list(rows), [kept.vectors[list(rows.values())]]
        self._is_saved = len(rows) == len(kept.names)
