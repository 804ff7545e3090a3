"""Retrieval, judged without a dual encoder: the fusion path scores every picture with every text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dualfuse.data.shards import Shards
from dualfuse.engine.evaluate import IMAGE_TO_TEXT, TEXT_TO_IMAGE, Pass, Plan, Result
from dualfuse.engine.progress import following
from dualfuse.models.base import Tokens
from dualfuse.tasks.base import Prep
from dualfuse.tasks.metrics import BLOCK, recall, reranked
from dualfuse.tasks.retrieval import Gallery, Retriever, Texts


@torch.inference_mode()
def rank_recall(task: Retriever, prep: Prep, shards: Shards, plan: Plan) -> Result:
    """Judges a task in evaluation mode by its score of each pair of a picture and a text of ``shards``.

    A picture is embedded once, a text once for each batch of pictures: both cost little beside fusing them. Four bytes
    are held for each pair; what were too many to hold would be fused for weeks.
    """
    gallery = Pass(task, Gallery(prep), shards, plan)
    texts, owner = _texts(gallery)
    scores = _scores(gallery, texts)
    numbers = torch.arange(len(scores))
    sides = {TEXT_TO_IMAGE: (scores.T, owner, numbers), IMAGE_TO_TEXT: (scores, numbers, owner)}
    found = {way: _ranks(*side) for way, side in sides.items()}
    metrics = {f"{way}/{name}": value for way in found for name, value in recall(found[way]).items()}
    return Result(metrics, len(scores), len(owner), tuple(gallery.excluded))


def _texts(gallery: Pass) -> tuple[Texts, Tensor]:
    """Gives all texts, and the picture of each (M,)."""
    rows, owner, first = [], [], 0
    for delivery in gallery.pictures("texts"):
        gallery.excluded += delivery.skipped
        for number, texts in enumerate(delivery.batch["texts"], start=first):
            rows += texts
            owner += [number] * len(texts)
        first += len(delivery.batch["texts"])
    return Texts.of(rows), torch.tensor(owner)


def _scores(gallery: Pass, texts: Texts) -> Tensor:
    """Gives the scores (N, M) of all pictures with all texts, those of like length side by side."""
    batch, rows = gallery.plan.batch, list[Tensor]()
    parts = texts.mask.sum(1).argsort(stable=True).split(batch)
    for image, part in following(_blocks(gallery, parts), total=_times(gallery, parts), what="pictures x texts"):
        if part is parts[0]:
            rows.append(torch.empty(len(image), len(texts.ids)))
        chosen = texts.take(part, gallery.device)
        text = gallery.task.model.embed_text(chosen.ids, chosen.mask)
        pairs = torch.cartesian_prod(*(torch.arange(len(side), device=gallery.device) for side in (image, text)))
        found = [gallery.task.match_score(image.take(i), text.take(t)) for i, t in map(_columns, pairs.split(batch))]
        rows[-1][:, part] = torch.cat(found).view(len(image), len(part)).float().cpu()
    return torch.cat(rows)


def _blocks(gallery: Pass, parts: Sequence[Tensor]) -> Iterator[tuple[Tokens, Tensor]]:
    """Gives each batch of pictures with each part of the texts."""
    for delivery in gallery.batches():
        image = gallery.task.model.embed_image(delivery.batch["image"].to(gallery.device))
        yield from ((image, part) for part in parts)


def _times(gallery: Pass, parts: Sequence[Tensor]) -> int:
    return -(-len(gallery.shards) // gallery.plan.batch) * len(parts)


def _columns(pairs: Tensor) -> tuple[Tensor, Tensor]:
    return pairs[:, 0], pairs[:, 1]


def _ranks(scores: Tensor, query_of: Tensor, candidate_of: Tensor) -> Tensor:
    """Gives how many wrong candidates score at least as high as the best right one, for scores (Q, C)."""
    parts = zip(scores.split(BLOCK), query_of.split(BLOCK), strict=True)
    last = scores.new_tensor(scores.shape[1])
    return torch.cat([reranked(last, query[:, None] == candidate_of, some) for some, query in parts])
