"""The vectors of a collection while it is being embedded: begins with what was kept, and keeps what is added."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from dualfuse.search.collection import Collection
from dualfuse.search.stores.exact import EmbeddingFile, StoredEmbeddings

SAVE_EVERY = 60.0  # seconds; what was embedded since is lost when the power is


class IndexBuilder:
    """Numbers of images in a collection and their vectors, in memory and in a store."""

    def __init__(self, collection: Collection, store: EmbeddingFile) -> None:
        """Begin with the vectors of all images that have not changed since the store was written."""
        self.collection, self.store = collection, store
        self._numbers: list[int] = []
        self._parts: list[Tensor] = []  # each (B, D), together in the order of the numbers
        self.place, self._is_saved, self._saved_at = None, True, monotonic()
        found = store.read()
        if found:
            kept, self.place = found
            self._begin(kept)

    def __len__(self) -> int:
        """The number of images that have a vector."""
        return len(self._numbers)

    def missing(self) -> tuple[int, ...]:
        """List the images without a vector."""
        there = set(self._numbers)
        return tuple(number for number in range(len(self.collection)) if number not in there)

    def add(self, numbers: Sequence[int], embeddings: Tensor) -> None:
        """Take the vectors (B, D) of B more images, and saves everything now and then."""
        if numbers:
            self._numbers += numbers
            self._parts.append(embeddings)
            self._is_saved = False
        if monotonic() - self._saved_at >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write everything, unless the store holds it already; ``place`` is then its file, None if it has none."""
        if not self._is_saved and self._numbers:
            numbers, embeddings = self.sorted()
            names, stamps = self.collection.names, self.collection.stamps
            kept = StoredEmbeddings(tuple(names[n] for n in numbers), tuple(stamps[n] for n in numbers), embeddings)
            self.place, self._is_saved = self.store.write(kept), True
        self._saved_at = monotonic()

    def sorted(self) -> tuple[tuple[int, ...], Tensor]:
        """Return N numbers, ascending, and their vectors (N, D)."""
        order = np.argsort(np.array(self._numbers), kind="stable")
        return tuple(self._numbers[place] for place in order.tolist()), torch.cat(self._parts)[torch.from_numpy(order)]

    def _begin(self, kept: StoredEmbeddings) -> None:
        row_of = {image: row for row, image in enumerate(zip(kept.names, kept.stamps, strict=True))}
        images = enumerate(zip(self.collection.names, self.collection.stamps, strict=True))
        rows = {number: row_of[image] for number, image in images if image in row_of}
        self._numbers, self._parts = list(rows), [kept.embeddings[list(rows.values())]]
        self._is_saved = len(rows) == len(kept.names)
