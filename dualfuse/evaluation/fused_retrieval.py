"""Retrieval, judged without a dual encoder: the fusion path scores every image with every text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dualfuse.data.shards.shards import Shards
from dualfuse.evaluation.gallery import Gallery, Retriever, TextBatch
from dualfuse.evaluation.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE, GalleryReader, Plan, RetrievalResult
from dualfuse.metrics.recall import BLOCK, recall, reranked_ranks
from dualfuse.models.base import Tokens
from dualfuse.progress import track
from dualfuse.tasks.base import Processor


@torch.inference_mode()
def evaluate_fused_retrieval(task: Retriever, processor: Processor, shards: Shards, plan: Plan) -> RetrievalResult:
    """Evaluate a task in evaluation mode by its score of each pair of an image and a text of ``shards``.

    An image is embedded once, a text once for each batch of images: both cost little beside fusing them. Four bytes
    are held for each pair; what were too many to hold would be fused for weeks.
    """
    gallery = GalleryReader(task, Gallery(processor), shards, plan)
    texts, owner = _texts(gallery)
    scores = _scores(gallery, texts)
    numbers = torch.arange(len(scores))
    sides = {TEXT_TO_IMAGE: (scores.T, owner, numbers), IMAGE_TO_TEXT: (scores, numbers, owner)}
    found = {way: _ranks(*side) for way, side in sides.items()}
    metrics = {f"{way}/{name}": value for way in found for name, value in recall(found[way]).items()}
    return RetrievalResult(metrics, len(scores), len(owner), tuple(gallery.excluded))


def _texts(gallery: GalleryReader) -> tuple[TextBatch, Tensor]:
    """Return all texts, and the image of each (M,)."""
    rows, owner, first = [], [], 0
    for loaded_batch in gallery.batches_with_progress("texts"):
        gallery.excluded += loaded_batch.skipped
        for number, texts in enumerate(loaded_batch.batch["texts"], start=first):
            rows += texts
            owner += [number] * len(texts)
        first += len(loaded_batch.batch["texts"])
    return TextBatch.of(rows), torch.tensor(owner)


def _scores(gallery: GalleryReader, texts: TextBatch) -> Tensor:
    """Return the scores (N, M) of all images with all texts, those of like length side by side."""
    batch, rows = gallery.plan.batch_size, list[Tensor]()
    parts = texts.mask.sum(1).argsort(stable=True).split(batch)
    for image, part in track(_blocks(gallery, parts), total=_times(gallery, parts), what="images x texts"):
        if part is parts[0]:
            rows.append(torch.empty(len(image), len(texts.ids)))
        chosen = texts.take(part, gallery.device)
        text = gallery.task.model.embed_text(chosen.ids, chosen.mask)
        pairs = torch.cartesian_prod(*(torch.arange(len(side), device=gallery.device) for side in (image, text)))
        found = [gallery.task.match_logit(image.take(i), text.take(t)) for i, t in map(_columns, pairs.split(batch))]
        rows[-1][:, part] = torch.cat(found).view(len(image), len(part)).float().cpu()
    return torch.cat(rows)


def _blocks(gallery: GalleryReader, parts: Sequence[Tensor]) -> Iterator[tuple[Tokens, Tensor]]:
    """Return each batch of images with each part of the texts."""
    for loaded_batch in gallery.batches():
        image = gallery.task.model.embed_image(loaded_batch.batch["image"].to(gallery.device))
        yield from ((image, part) for part in parts)


def _times(gallery: GalleryReader, parts: Sequence[Tensor]) -> int:
    return -(-len(gallery.shards) // gallery.plan.batch_size) * len(parts)


def _columns(pairs: Tensor) -> tuple[Tensor, Tensor]:
    return pairs[:, 0], pairs[:, 1]


def _ranks(scores: Tensor, query_of: Tensor, candidate_of: Tensor) -> Tensor:
    """Return how many wrong candidates score at least as high as the best right one, for scores (Q, C)."""
    parts = zip(scores.split(BLOCK), query_of.split(BLOCK), strict=True)
    last = scores.new_tensor(scores.shape[1])
    return torch.cat([reranked_ranks(last, query[:, None] == candidate_of, some) for some, query in parts])
