"""Example queries, successes and failures, drawn with a fixed seed from all captions of a set."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.processor import Processor
from dualfuse.data.shards.shards import Shards
from dualfuse.evaluation.retrieval import Gallery, Retriever
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.metrics.recall import nearest, ranks, reranked_ranks
from dualfuse.report.demo.results import Found, Queries, Query

SHOWN = 5
EACH = 6
"""Captions whose image came first, and as many whose image did not."""
SEED = 0


@torch.inference_mode()
def queries(task: Retriever, processor: Processor, shards: Shards, plan: Plan) -> Queries:
    """Search ``shards`` for every caption, re-ranks ``plan.rerank`` images, and draws examples of both outcomes.

    Whether an image came first is judged after re-ranking. Broken samples raise.
    """
    gallery = Gallery(task, EvaluationData(shards, processor), plan)
    image, text, texts, owner = gallery.features()
    numbers = torch.arange(len(image), device=image.device)
    before = ranks(text, image, owner, numbers)
    cosine, index = nearest(text, image, max(plan.rerank, SHOWN))
    scores, _ = gallery.pair_scores(index, torch.zeros(len(image), 0, dtype=torch.long), texts)
    scores = task.rerank_score(cosine, scores)
    after = reranked_ranks(before, index == owner[:, None], scores)

    captions = [caption for sample in shards for caption in sample.texts]
    order = scores.argsort(dim=1, descending=True)
    drawn = tuple(
        Query(
            caption=captions[number],
            right=int(owner[number]),
            place=int(before[number]),
            reranked_place=int(after[number]),
            nearest=_found(index[number], cosine[number]),
            reranked=_found(index[number][order[number]], scores[number][order[number]]),
        )
        for number in draw(after.cpu().numpy() == 0, np.random.default_rng(SEED))
    )
    return Queries(drawn, first=int((after == 0).sum()), texts=len(captions))


def draw(is_first: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Return up to ``EACH`` numbers where ``is_first`` (M,) is true, then those where it is not, 2 * ``EACH`` in all.

    Where one kind has too few, the other gives more.
    """
    kinds = [rng.permutation(np.flatnonzero(is_first)), rng.permutation(np.flatnonzero(~is_first))]
    few = [min(EACH, len(kind)) for kind in kinds]
    takes = [2 * EACH - few[1], 2 * EACH - few[0]]
    return [int(number) for kind, take in zip(kinds, takes, strict=True) for number in kind[:take]]


def _found(index: Tensor, scores: Tensor) -> tuple[Found, ...]:
    pairs = zip(index[:SHOWN].tolist(), scores[:SHOWN].tolist(), strict=True)
    return tuple(Found(number, round(score, 3)) for number, score in pairs)
