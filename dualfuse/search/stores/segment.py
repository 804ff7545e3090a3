"""A segment of an exact store: up to 2^18 embeddings in a file of their own, and their codes beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualfuse.search.stores.codecs import ROUNDING, Codec
from dualfuse.search.stores.rows import Rows

CAPACITY = 1 << 18  # rows of a segment
BLOCK = 1 << 22  # scores at a time
ENCODED = 16_384  # rows coded at a time
UNUSUAL = 0.001  # share of rows, those with the largest errors, that are scored exactly


@dataclass(frozen=True)
class Scores:
    """Approximate scores (R, Q) of R rows of a segment from row ``start``, and the bounds (Q,) of their errors."""

    start: int
    scores: Tensor
    error: Tensor


class Segment:
    """Embeddings (R, D); row r of segment n is row ``n * CAPACITY + r`` of the store."""

    def __init__(self, number: int, folder: Path | None, width: int, count: int = 0) -> None:
        """``count`` rows are valid; without ``folder`` they are in memory."""
        self.number, self.folder = number, folder
        self.rows = Rows(self._path("fp32"), width, np.dtype(np.float32), count)
        self.alive = np.zeros(CAPACITY, bool)
        self.codec: Codec | None = None
        self.codes: Rows | None = None
        self.errors: Rows | None = None
        self.state = torch.empty(0, dtype=torch.float32)
        self._bounds_of = 0, (0.0, 0.0, torch.empty(0, dtype=torch.long))

    @property
    def first(self) -> int:
        """The number of its first row in the store."""
        return self.number * CAPACITY

    @property
    def living(self) -> np.ndarray:
        """Which of its rows are valid (R,), bool."""
        return self.alive[: self.rows.count]

    @property
    def embeddings(self) -> Tensor:
        """All rows (R, D), removed ones included."""
        return torch.from_numpy(self.rows.values)

    def append(self, embeddings: Tensor) -> None:
        """Add embeddings (B, D), which are not valid yet."""
        self.rows.append(embeddings.numpy())

    def attach(self, codec: Codec, count: int, state: Tensor) -> None:
        """Use codes, of which ``count`` are on disk."""
        self.codec, self.state = codec, state
        self.codes = Rows(self._path(codec.name), codec.code_width, codec.dtype, count)
        self.errors = Rows(self._path(f"{codec.name}.errors"), 2, np.dtype(np.float32), count)

    def encode(self) -> bool:
        """Code the rows that have no code yet, and return whether there were any. Raises ``OSError``."""
        if self.codec is None or self.codes is None or self.errors is None or self.codes.count == self.rows.count:
            return False
        if not self.codes.count:
            self.state = self.codec.fit(self.embeddings[:ENCODED])
        for rows in self.embeddings[self.codes.count :].split(ENCODED):
            codes, errors = self.codec.encode(rows, self.state)
            count = self.errors.count
            self.errors.append(errors.numpy())
            try:
                self.codes.append(codes.numpy())
            except OSError:
                self.errors.count = count
                raise
        return True

    def map(self) -> None:
        """Map all files, so that the segment can be read when they are deleted. Raises if they are too short."""
        for rows in (self.rows, self.codes, self.errors):
            if rows is not None:
                _ = rows.values

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        for rows in (self.rows, self.codes, self.errors):
            if rows is not None:
                rows.sync()

    def scores(self, queries: Tensor, *, by_codes: bool) -> Iterator[Scores]:
        """Yield the scores of Q queries (Q, D), ``by_codes`` where there are some.

        Rows whose code has an unusually large error are scored exactly, so that they do not widen the bound of others.
        """
        step = max(1024, BLOCK // len(queries))
        coded = self.codes.count if self.codes and by_codes else 0
        norms = queries.norm(dim=1)
        exact = rounding(queries)
        if self.codec and self.codes and self.errors and coded:
            codes, errors = torch.from_numpy(self.codes.values), torch.from_numpy(self.errors.values)
            cap, longest, large = self._bounds(errors)
            for start in range(0, coded, step):
                scores, query_error = self.codec.score(queries, codes[start : start + step], self.state)
                if self.codec.is_bounded:
                    rows = large[(large >= start) & (large < start + step)]
                    scores[rows - start] = self.embeddings[rows] @ queries.T
                yield Scores(start, scores, norms * cap + query_error * longest + exact * (3 + cap))
        for start in range(coded, self.rows.count, step):
            yield Scores(start, self.embeddings[start : start + step] @ queries.T, exact)

    def _bounds(self, errors: Tensor) -> tuple[float, float, Tensor]:
        """Return the largest error that is not unusual, the largest norm of a code, and the rows with larger errors."""
        if self._bounds_of[0] != len(errors):
            cap = float(errors[:, 0].quantile(1 - UNUSUAL))
            large = (errors[:, 0] > cap).nonzero()[:, 0]
            self._bounds_of = len(errors), (cap, float(errors[:, 1].max()), large)
        return self._bounds_of[1]

    def _path(self, kind: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{self.number:06}.{kind}"


def rounding(queries: Tensor) -> Tensor:
    """Return the bounds (Q,) of the rounding errors of inner products with queries (Q, D)."""
    return ROUNDING * queries.shape[1] * queries.norm(dim=1)
