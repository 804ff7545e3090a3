"""Retrieval, judged: text to image and image to text, by the dual encoder alone and re-ranked by the fusion path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dualfuse.data.loader import LoadedBatch, Skipped, evaluation_batches
from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.gallery import Gallery, Retriever, TextBatch
from dualfuse.metrics.recall import nearest, ranks, recall, reranked_ranks
from dualfuse.progress import track
from dualfuse.tasks.base import Processor

TEXT_TO_IMAGE, IMAGE_TO_TEXT = "text_to_image", "image_to_text"


@dataclass(frozen=True)
class Plan:
    """How an evaluation is done."""

    batch_size: int = 64
    """Images, texts or pairs at a time."""
    rerank: int = 0
    """Candidates per query that the fusion path puts in a new order; 0: none."""
    num_workers: int = 2
    """Loader processes."""
    exclude_broken: bool = False
    """Leave out samples that cannot be read, and report them, instead of stopping."""


@dataclass(frozen=True)
class RetrievalResult:
    """Recall as shares of one, the numbers of images and texts, and what was left out."""

    metrics: dict[str, float]
    images: int
    texts: int
    excluded: tuple[Skipped, ...]


@torch.inference_mode()
def evaluate_retrieval(task: Retriever, processor: Processor, shards: Shards, plan: Plan) -> RetrievalResult:
    """Evaluate a task in evaluation mode on every image of ``shards`` with all its texts.

    ``DualfuseError`` if the task did not learn contrast: there is nothing to search with.
    ``plan.rerank`` is for tasks that trained matching; others are judged without.
    Memory grows with the number of images plus the number of texts, never with their product.
    """
    gallery = GalleryReader(task, Gallery(processor), shards, plan)
    image, text, texts, owner = gallery.features()
    numbers = torch.arange(len(image), device=image.device)
    sides = {TEXT_TO_IMAGE: (text, image, owner, numbers), IMAGE_TO_TEXT: (image, text, numbers, owner)}
    found = {way: ranks(*side) for way, side in sides.items()}
    metrics = {f"{way}/{name}": value for way in found for name, value in recall(found[way]).items()}
    if plan.rerank and task.can_match:
        best = {way: nearest(queries, candidates, plan.rerank) for way, (queries, candidates, *_) in sides.items()}
        scores = gallery.pair_scores(best[TEXT_TO_IMAGE][1], best[IMAGE_TO_TEXT][1], texts)
        for way, score in zip(sides, scores, strict=True):
            (cosine, index), (_, _, query_of, candidate_of) = best[way], sides[way]
            right = candidate_of[index] == query_of[:, None]
            after = reranked_ranks(found[way], right, task.rerank_score(cosine, score))
            metrics |= {f"{way}/reranked/{name}": value for name, value in recall(after).items()}
    return RetrievalResult(metrics, len(image), len(text), tuple(gallery.excluded))


@dataclass
class GalleryReader:
    """Reads the images of a set from first to last, as often as needed, and never holds them all."""

    task: Retriever
    gallery: Gallery
    shards: Shards
    plan: Plan

    def __post_init__(self) -> None:
        """Nothing is excluded yet; ``DualfuseError`` for a model that is training, whose answers are drawn."""
        if self.task.model.training:
            raise DualfuseError("the model is in training mode; call eval() on the task before it is judged")
        self.excluded: list[Skipped] = []
        self.device = next(self.task.model.parameters()).device

    def batches_with_progress(self, what: str) -> Iterator[LoadedBatch]:
        """Return the images in file order, in batches, and shows how far it is."""
        return track(self.batches(), total=-(-len(self.shards) // self.plan.batch_size), what=what)

    def batches(self) -> Iterator[LoadedBatch]:
        """Return them without a word."""
        return evaluation_batches(
            self.shards,
            self.gallery.read,
            self.gallery.collate,
            batch_size=self.plan.batch_size,
            num_workers=self.plan.num_workers,
            exclude_broken=self.plan.exclude_broken,
        )

    def features(self) -> tuple[Tensor, Tensor, TextBatch, Tensor]:
        """Return vectors of images (N, D) and texts (M, D), the texts, and the image of each text (M,)."""
        images, rows, owner = [], [], []
        first = 0
        for loaded_batch in self.batches_with_progress("images"):
            self.excluded += loaded_batch.skipped
            tokens = self.task.model.embed_image(loaded_batch.batch["image"].to(self.device))
            images.append(self.task.image_features(tokens))
            for number, texts in enumerate(loaded_batch.batch["texts"], start=first):
                rows += texts
                owner += [number] * len(texts)
            first += len(loaded_batch.batch["texts"])
        texts = TextBatch.of(rows)
        return torch.cat(images), self.text_embeddings(texts), texts, torch.tensor(owner, device=self.device)

    def text_embeddings(self, texts: TextBatch) -> Tensor:
        """Return vectors (M, D), computed in order of length so that little is padded."""
        order = texts.mask.sum(1).argsort()
        parts = track(order.split(self.plan.batch_size), total=-(-len(order) // self.plan.batch_size), what="texts")
        embeddings = torch.cat([self.task.text_features(self._embed(texts, part)) for part in parts])
        return torch.empty_like(embeddings).index_copy_(0, order.to(self.device), embeddings)

    def pair_scores(self, images_of: Tensor, texts_of: Tensor, texts: TextBatch) -> tuple[Tensor, Tensor]:
        """Return the fusion path's scores of the candidates of each text (M, k) and of each image (N, l).

        All pairs of one batch of images are scored together, so that each image is read and embedded once.
        """
        queries = (torch.arange(len(part)).repeat_interleave(part.shape[1]) for part in (images_of, texts_of))
        text_queries, image_queries = queries
        image_of_pair = torch.cat([images_of.flatten().cpu(), image_queries])
        text_of_pair = torch.cat([text_queries, texts_of.flatten().cpu()])
        scores = torch.empty(len(image_of_pair), device=self.device)
        first = 0
        for loaded_batch in self.batches_with_progress("re-ranking"):
            tokens = self.task.model.embed_image(loaded_batch.batch["image"].to(self.device))
            here = ((image_of_pair >= first) & (image_of_pair < first + len(tokens))).nonzero()[:, 0]
            here = here[text_of_pair[here].argsort(stable=True)]
            for pairs in here.split(self.plan.batch_size):
                rows = (image_of_pair[pairs] - first).to(self.device)
                different, index = text_of_pair[pairs].unique(return_inverse=True)  # a text of many is embedded once
                text = self._embed(texts, different).take(index.to(self.device))
                scores[pairs.to(self.device)] = self.task.match_logit(tokens.take(rows), text)
            first += len(tokens)
        return scores[: images_of.numel()].view(images_of.shape), scores[images_of.numel() :].view(texts_of.shape)

    def _embed(self, texts: TextBatch, index: Tensor):
        chosen = texts.take(index, self.device)
        return self.task.model.embed_text(chosen.ids, chosen.mask)
