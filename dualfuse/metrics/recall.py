"""Recall at k of retrieval, from embeddings or from scores of pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dualfuse.metrics.base import MetricInfo, shares

BLOCK = 1024  # queries compared with all candidates at a time


def recall_infos(*directions: str) -> tuple[MetricInfo, ...]:
    """Declare the metrics of :func:`recall` under each of ``directions``."""
    return shares(*(f"{direction}/R@{k}" for direction in directions for k in (1, 5, 10)))


def recall(ranks: Tensor, at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Return the share of queries whose target is among the first 1, 5, 10, from 0-based ranks (Q,)."""
    return {f"R@{k}": (ranks < k).float().mean().item() for k in at}


def ranks(queries: Tensor, candidates: Tensor, query_of: Tensor, candidate_of: Tensor) -> Tensor:
    """Return the 0-based rank (Q,) of the best target of each query, by the dot product.

    ``queries`` (Q, D), ``candidates`` (C, D). The targets of a query are the candidates whose number in
    ``candidate_of`` (C,) is that of the query in ``query_of`` (Q,). Ties count against the model, so that constant
    scores rank last.
    """
    blocks = zip(queries.split(BLOCK), query_of.split(BLOCK), strict=True)
    return torch.cat([_rank(query @ candidates.T, owner[:, None] == candidate_of[None]) for query, owner in blocks])


def ranks_of_scores(scores: Tensor, query_of: Tensor, candidate_of: Tensor) -> Tensor:
    """Return the ranks (Q,) as :func:`ranks` does, from scores (Q, C) that are held already."""
    last = scores.new_tensor(scores.shape[1])
    blocks = zip(scores.split(BLOCK), query_of.split(BLOCK), strict=True)
    return torch.cat([reranked_ranks(last, owner[:, None] == candidate_of, some) for some, owner in blocks])


def nearest(queries: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return scores and indices (Q, k) of the best candidates, best first, without holding all scores at once."""
    k = min(k, len(candidates))
    best = [(query @ candidates.T).topk(k, dim=1) for query in queries.split(BLOCK)]
    return torch.cat([block.values for block in best]), torch.cat([block.indices for block in best])


def best_targets_and_wrong(
    queries: Tensor, candidates: Tensor, query_of: Tensor, candidate_of: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the score of the best target (Q,), and score and index of the best wrong candidate (Q,) of each query.

    The arguments are those of :func:`ranks`. The score is -inf where there is no target, or no wrong candidate.
    """
    blocks = zip(queries.split(BLOCK), query_of.split(BLOCK), strict=True)
    parts = [best_of_scores(query @ candidates.T, owner[:, None] == candidate_of[None]) for query, owner in blocks]
    target, wrong, index = (torch.cat(column) for column in zip(*parts, strict=True))
    return target, wrong, index


def best_of_scores(scores: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what :func:`best_targets_and_wrong` returns, from scores and targets (Q, C)."""
    wrong = scores.masked_fill(is_target, float("-inf")).max(1)
    return scores.masked_fill(~is_target, float("-inf")).amax(1), wrong.values, wrong.indices


def reranked_ranks(before: Tensor, is_target: Tensor, scores: Tensor) -> Tensor:
    """Return the ranks (Q,) after the first k candidates were ordered by ``scores`` (Q, k).

    ``before`` (Q,) are the ranks without re-ranking, ``is_target`` (Q, k) marks the targets. A query without a target
    among its candidates keeps its rank.
    """
    return torch.where(is_target.any(1), _rank(scores, is_target), before)


def _rank(scores: Tensor, is_target: Tensor) -> Tensor:
    """Count the other candidates that do not score below the best target; NaN never scores below."""
    best = scores.masked_fill(~is_target, float("-inf")).amax(1, keepdim=True)
    return (~(scores < best) & ~is_target).sum(1)
