"""Ranks and recall by hand and against sorting."""

from __future__ import annotations

import pytest
import torch

from dualfuse.metrics.recall import nearest, ranks, recall, reranked_ranks

SCORES = torch.tensor(
    [
        [0.9, 0.1, 0.2, 0.3],  # right: 0, nothing before it
        [0.8, 0.5, 0.6, 0.1],  # right: 1, two before it
        [0.4, 0.3, 0.1, 0.2],  # right: 2, three before it
        [0.5, 0.5, 0.0, 0.5],  # right: 3, two as good
    ]
)
EYE = torch.eye(4)


def test_ranks_and_recall_by_hand() -> None:
    found = ranks(SCORES, EYE, torch.arange(4), torch.arange(4))
    assert found.tolist() == [0, 2, 3, 2]
    assert recall(found, at=(1, 3, 4)) == pytest.approx({"R@1": 0.25, "R@3": 0.75, "R@4": 1.0})
    assert list(recall(found)) == ["R@1", "R@5", "R@10"]


def test_rank_is_that_of_the_best_target() -> None:
    """Columns 0 and 1 belong to image 0, columns 2 and 3 to image 1; both targets of row 0 rank first."""
    owners = torch.tensor([0, 0, 1, 1])
    assert ranks(SCORES[:2], EYE, torch.tensor([0, 1]), owners).tolist() == [0, 1]
    assert ranks(torch.tensor([[0.1, 0.9, 0.5, 0.8]]), EYE, torch.tensor([0]), owners).tolist() == [0]


def test_equal_scores_rank_last() -> None:
    same = torch.zeros(4, 4)
    assert ranks(same, EYE, torch.arange(4), torch.arange(4)).tolist() == [3] * 4
    assert ranks(same, EYE, torch.tensor([9]).expand(4), torch.arange(4)).tolist() == [4] * 4  # no right answer at all


def test_ranks_equal_those_of_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("dualfuse.metrics.recall.BLOCK", 7)
    queries, candidates = torch.randn(20, 5), torch.randn(31, 5)
    query_of, candidate_of = torch.randint(6, (20,)), torch.arange(31) % 6
    found = ranks(queries, candidates, query_of, candidate_of)
    for query, owner, rank in zip(queries, query_of.tolist(), found.tolist(), strict=True):
        in_order = (candidates @ query).argsort(descending=True)
        first_right = (candidate_of[in_order] == owner).nonzero()[0, 0]
        assert rank == first_right
    scores, numbers = nearest(queries, candidates, 4)
    expected = (queries @ candidates.T).sort(dim=1, descending=True)
    assert torch.equal(numbers, expected.indices[:, :4])
    torch.testing.assert_close(scores, expected.values[:, :4])
    assert nearest(queries, candidates[:2], 4)[1].shape == (20, 2)


def test_reranking_by_hand() -> None:
    """With three candidates, the target rises to the top, falls to the end, ties, or is missing."""
    right = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool)
    scores = torch.tensor([[1.0, 2, 3], [1, 2, 3], [2, 2, 1], [1, 2, 3], [-9, 5, 4]])
    before = torch.tensor([2, 0, 1, 17, 0])
    assert reranked_ranks(before, right, scores).tolist() == [0, 2, 1, 17, 0]
