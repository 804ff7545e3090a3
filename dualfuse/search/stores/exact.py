"""The default store: every inner product, over embeddings that are mapped from files and grow at their end."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.search.stores.base import Match, Matches, check_batch, check_width
from dualfuse.search.stores.codecs import PRECISIONS, codec
from dualfuse.search.stores.columns import Columns
from dualfuse.search.stores.filters import Filter, Metadata
from dualfuse.search.stores.ranking import Candidates, best_rows
from dualfuse.search.stores.segment import Scores, rounding
from dualfuse.search.stores.segments import Entries, Segments

logger = logging.getLogger(__name__)
FEW = 0.05  # share of rows below which a filtered search reads the matching embeddings alone
READ = 16_384  # embeddings that a filtered search reads at a time
PENDING = 64 << 20  # bytes of embeddings after which an add flushes


class ExactStore:
    """A :class:`VectorStore` that compares a query with every embedding.

    Embeddings are appended to files that are mapped into memory, up to 2^18 in each; names, metadata and the number of
    valid rows are in an SQLite file beside them. Its transaction decides what is stored, so a process that is killed
    leaves the state of the last :meth:`flush`. Flushing writes what is new, and needs memory for a block.

    ``precision`` "fp16" or "int8" scans smaller codes first, and compares the candidates in fp32: with all dimensions,
    the result is the same (see :mod:`~dualfuse.search.stores.codecs`). "bits", and ``dimensions`` fewer than the
    embeddings have, are approximate.
    """

    def __init__(self, fingerprint: str, precision: str = "fp32", dimensions: int = 0) -> None:
        """Create an empty store in memory; :meth:`open` keeps it in files."""
        if precision not in PRECISIONS or dimensions < 0:
            raise DualfuseError(
                f"precision is {precision!r} and dimensions {dimensions}; give {', '.join(PRECISIONS)}, and 0 for all"
            )
        self.fingerprint, self.precision, self.dimensions = fingerprint, precision, dimensions
        self._paths: tuple[Path, ...] = ()
        self._rows = self._create(None)
        self._pending: list[Callable[[Segments], None]] = []  # changes since the last flush
        self._pending_bytes = 0
        self._columns: tuple[Columns, np.ndarray] | None = None  # and the rows that they describe

    @staticmethod
    def open(fingerprint: str, paths: Sequence[Path], *, precision: str = "fp32", dimensions: int = 0) -> ExactStore:
        """Return the store in the newest of the folders that is readable; an empty one if there is none.

        ``paths`` are folders to write to, in order of preference: the next one is used where one is not writable.
        Damaged rows, and all rows of another model, are reported and dropped: they can be computed again.
        """
        store = ExactStore(fingerprint, precision, dimensions)
        store._paths = tuple(paths)
        existing = [(status.st_mtime_ns, path) for path in paths if (status := Segments.status(path))]
        for _, path in sorted(existing, reverse=True):
            try:
                store._rows = Segments.load(path, fingerprint, precision, dimensions)
            except (sqlite3.Error, OSError, ValueError, TypeError, LookupError) as error:
                logger.warning("%s cannot be used (%s); the images are embedded again", path, error)
            else:
                store._try(Segments.update)  # codes of a new precision, and what was damaged
                break
        return store

    @property
    def path(self) -> Path | None:
        """The folder that holds the embeddings; None if none could be read or written."""
        return self._rows.folder

    @property
    def location(self) -> str:
        """The path of the folder; empty if there is none."""
        return str(self.path or "")

    @property
    def version(self) -> str:
        """The number of flushes that changed the store, which every answer carries."""
        return str(self._rows.manifest.version)

    @property
    def embeddings(self) -> Tensor:
        """All embeddings (N, D), in the order of :meth:`entries`; copied into memory."""
        parts = [each.embeddings[torch.from_numpy(each.living)] for each in self._rows.segments.values()]
        return torch.cat(parts) if parts else torch.empty(0, 0, dtype=torch.float32)

    def entries(self) -> Mapping[str, Metadata]:
        """Return the metadata of every stored embedding by name; each is read when it is asked for."""
        return Entries(self._rows)

    def count(self, where: Filter | None = None) -> int:
        """Return the number of embeddings, or of those that match a filter."""
        return int(self._column_values()[0].select(where).sum()) if where else len(self._rows)

    def add(self, names: Sequence[str], embeddings: Tensor, metadata: Sequence[Metadata]) -> None:
        """Store B embeddings (B, D), float32; one whose name is already stored replaces it."""
        check_batch(names, embeddings, metadata, self._rows.width)
        if not len(names):
            return
        stored = embeddings.detach().float().cpu().contiguous()
        copied = tuple(names), tuple(map(dict, metadata))
        self._try(lambda rows: rows.add(copied[0], stored, copied[1]))
        self._pending_bytes += stored.nbytes
        if self._pending_bytes >= PENDING:
            self.flush()

    def remove(self, names: Sequence[str]) -> None:
        """Delete embeddings by name; unknown names are ignored."""
        if self._rows.manifest.rows_of(names):
            removed = tuple(names)
            self._try(lambda rows: rows.remove(removed))

    def flush(self) -> None:
        """Make all changes durable; where that fails, at the next path that is writable."""
        self._try(Segments.commit)
        self._pending, self._pending_bytes = [], 0

    def search(self, embeddings: Tensor, k: int, where: Filter | None = None) -> Matches:
        """Return the k best matches of each of Q queries (Q, D), best first."""
        queries, rows = embeddings.detach().float().cpu(), self._rows
        check_width(queries, rows.width)
        wanted = self._wanted(where)
        total = sum(int(mask.sum()) for mask in wanted.values())
        if not total or not len(queries) or k < 1:
            return self._answer([[] for _ in queries])
        chosen = codec(self.precision, self.dimensions, rows.width)
        is_exact = chosen is None or chosen.is_bounded
        if total <= max(FEW * len(rows), k):
            candidates, is_exact = self._among(queries, k, _numbers(rows, wanted)), True
        else:
            by_codes = is_exact or where is None  # filtered searches are exact
            candidates = self._scan(queries, k, wanted, by_codes=by_codes, bounded=is_exact or not by_codes)
            is_exact = is_exact or not by_codes
        return self._answer(self._named(best_rows(queries, k, candidates, rows.read)), exact=is_exact)

    def _scan(
        self, queries: Tensor, k: int, wanted: Mapping[int, np.ndarray], *, by_codes: bool, bounded: bool
    ) -> list[Tensor]:
        """Return, for each query, the rows that may be among its k best."""
        found = Candidates(len(queries), k, bounded=bounded)
        for number, segment in self._rows.segments.items():
            unwanted = None if wanted[number].all() else torch.from_numpy(~wanted[number])
            for block in segment.scores(queries, by_codes=by_codes):
                if unwanted is not None:
                    hidden = unwanted[block.start : block.start + len(block.scores)]
                    block.scores.masked_fill_(hidden[:, None], float("-inf"))
                found.add(block, segment.first)
        return found.rows()

    def _among(self, queries: Tensor, k: int, rows: Tensor) -> list[Tensor]:
        """Return the same, if ``rows`` alone are wanted: reading them is cheaper than a scan."""
        found = Candidates(len(queries), k, bounded=True)
        error = rounding(queries)
        for start in range(0, len(rows), READ):
            scores = self._rows.read(rows[start : start + READ]) @ queries.T
            found.add(Scores(start, scores, error), 0)
        return [rows[positions] for positions in found.rows()]

    def _wanted(self, where: Filter | None) -> dict[int, np.ndarray]:
        """Return, by the number of the segment, which of its rows a search may return."""
        if not where:
            return {number: segment.living for number, segment in self._rows.segments.items()}
        columns, numbers = self._column_values()
        return self._rows.masks(numbers[columns.select(where)])

    def _column_values(self) -> tuple[Columns, np.ndarray]:
        if self._columns is None:
            items = list(self._rows.manifest.items())
            self._columns = (
                Columns(text for _, _, text, _ in items),
                np.fromiter((row for row, *_ in items), np.int64, len(items)),
            )
        return self._columns

    def _named(self, results: Sequence[tuple[Tensor, Tensor]]) -> list[list[Match]]:
        names = self._rows.manifest.names_of({row for rows, _ in results for row in rows.tolist()})
        return [
            [Match(names[row], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
            for rows, scores in results
        ]

    def _answer(self, matches: list[list[Match]], *, exact: bool = True) -> Matches:
        return Matches(matches, fingerprint=self.fingerprint, version=self.version, exact=exact)

    def _create(self, folder: Path | None) -> Segments:
        return Segments.create(folder, self.fingerprint, self.precision, self.dimensions)

    def _try(self, change: Callable[[Segments], None]) -> None:
        """Change the rows, at another place if the present one is full or read-only."""
        self._columns = None
        is_new = self._rows.folder is None and self._paths and not len(self._rows)
        try:
            if is_new and change is not Segments.commit:
                raise FileNotFoundError("there is no folder yet")
            change(self._rows)
        except (OSError, sqlite3.Error) as error:
            if not is_new:
                logger.warning("%s cannot be written (%s)", self.location, error)
            self._move([*self._pending, change])
        if change not in (Segments.commit, Segments.update):
            self._pending.append(change)

    def _move(self, changes: Sequence[Callable[[Segments], None]]) -> None:
        """Make the committed rows and ``changes`` the content of the next path that is writable, or else of memory."""
        old, committed = self._rows.folder, self._rows
        if old is not None:
            committed.close()
            try:
                committed = Segments.load(old, self.fingerprint, self.precision, self.dimensions)
            except DualfuseError:  # a new folder, of which nothing was committed yet
                committed = self._create(None)
        for path in [*(path for path in self._paths if path != old), None]:
            try:
                self._rows = self._create(path)
                self._rows.copy(committed)
                for change in changes:
                    change(self._rows)
                break
            except (OSError, sqlite3.Error):
                if path is None:
                    raise
        committed.close()


def _numbers(rows: Segments, wanted: Mapping[int, np.ndarray]) -> Tensor:
    """Return the row numbers of masks."""
    parts = [torch.from_numpy(mask.nonzero()[0]) + rows.segments[number].first for number, mask in wanted.items()]
    return torch.cat(parts)
