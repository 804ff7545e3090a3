"""The k best rows of a store: a scan with bounded errors finds candidates, their embeddings decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dualfuse.search.stores.segment import Scores

OVERSAMPLED = 32  # candidates per wanted match, of codes without a bound


class Candidates:
    """Collects, for each of Q queries, the rows that may be among its k best."""

    def __init__(self, queries: int, k: int, *, bounded: bool) -> None:
        """``bounded``: the errors of all scores are bounded, so that no wanted row can be missed."""
        self.k = k if bounded else max(k * OVERSAMPLED, 256)
        self._bounded = bounded
        self._lowest = torch.full(
            (queries, 0), float("-inf"), dtype=torch.float32
        )  # lower bounds of the k best scores so far
        self._found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(queries)]  # rows, upper bounds

    def add(self, block: Scores, first: int) -> None:
        """Collect what a block of scores adds; ``first`` is the row of its segment's first. -inf: not wanted."""
        error = block.error if self._bounded else torch.zeros_like(block.error)
        by_query = block.scores.T.contiguous()
        best = by_query.topk(min(self.k, by_query.shape[1]), dim=1).values - error[:, None]
        self._lowest = torch.cat([self._lowest, best], dim=1)
        self._lowest = self._lowest.topk(min(self.k, self._lowest.shape[1]), dim=1).values
        least = self._least() - error
        least = least.clamp(min=torch.finfo(torch.float32).min)  # rows that are not wanted have -inf
        for number, (found, scores) in enumerate(zip(self._found, by_query, strict=True)):
            rows = (scores >= least[number]).nonzero()[:, 0]
            found.append((rows + block.start + first, scores[rows] + error[number]))

    def rows(self) -> list[Tensor]:
        """Return the candidates (M,) of each query, in the order of rows."""
        least = self._least()
        together = [tuple(map(torch.cat, zip(*found, strict=True))) for found in self._found]
        return [rows[upper >= least[number]] for number, (rows, upper) in enumerate(together)]

    def _least(self) -> Tensor:
        """Return the lower bound (Q,) of the k-th best score so far; -inf before there are k."""
        if self._lowest.shape[1] < self.k:
            return torch.full((len(self._lowest),), float("-inf"), dtype=torch.float32)
        return self._lowest[:, -1]


def best_rows(
    queries: Tensor, k: int, candidates: Iterable[Tensor], read: Callable[[Tensor], Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Return rows and scores of the k best candidates of each query, best first; ``read`` returns their embeddings.

    Equal scores are in the order of rows, so that the result does not depend on how the candidates were found.
    """
    results = []
    for query, rows in zip(queries, candidates, strict=True):
        scores = (read(rows) * query).sum(1)
        order = torch.argsort(scores, descending=True, stable=True)[:k]
        results.append((rows[order], scores[order]))
    return results
