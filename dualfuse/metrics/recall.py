"""How answers are judged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 1024  # queries that are compared with all candidates at a time


def recall(ranks: Tensor, at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Return the share of queries whose right answer is among the first 1, 5, 10, from ranks (Q,) that start at 0."""
    return {f"R@{k}": (ranks < k).float().mean().item() for k in at}


def ranks(queries: Tensor, candidates: Tensor, query_of: Tensor, candidate_of: Tensor) -> Tensor:
    """Return how many wrong candidates score at least as high as the best right one, per query: (Q,).

    ``queries`` (Q, D), ``candidates`` (C, D); a candidate is right where its number in ``candidate_of`` (C,) is the
    query's in ``query_of`` (Q,). A tie counts against the model, so that one that scores all alike finds nothing.
    """
    blocks = []
    for query, owner in zip(queries.split(BLOCK), query_of.split(BLOCK), strict=True):
        scores = query @ candidates.T
        right = owner[:, None] == candidate_of[None]
        blocks.append(_ahead(scores, right))
    return torch.cat(blocks)


def nearest(queries: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return scores and numbers (Q, k) of the best candidates, best first, without holding all scores at once."""
    k = min(k, len(candidates))
    found = [(query @ candidates.T).topk(k, dim=1) for query in queries.split(BLOCK)]
    return torch.cat([top.values for top in found]), torch.cat([top.indices for top in found])


def reranked_ranks(before: Tensor, right: Tensor, scores: Tensor) -> Tensor:
    """Return the ranks (Q,) after the first k were put in the order of ``scores`` (Q, k).

    ``before`` (Q,) are the ranks without it, ``right`` (Q, k) tells which of the k are right answers. A query whose
    right answer is not among them keeps its rank.
    """
    return torch.where(right.any(1), _ahead(scores, right), before)


def _ahead(scores: Tensor, right: Tensor) -> Tensor:
    """Count the wrong candidates that do not score below the best right one; one that is not a number does not."""
    best = scores.masked_fill(~right, float("-inf")).amax(1, keepdim=True)
    return (~(scores < best) & ~right).sum(1)
