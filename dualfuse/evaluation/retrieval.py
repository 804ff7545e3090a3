"""Retrieval over a whole set, in both directions: by the dual encoder, re-ranked, or by fusing all pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.loader import Batch
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.padding import pad_texts
from dualfuse.evaluation.predictions import RetrievedRank
from dualfuse.evaluation.runner import Evaluation, EvaluationData, EvaluationResult, Plan
from dualfuse.metrics.recall import (
    best_of_scores,
    best_targets_and_wrong,
    nearest,
    ranks,
    ranks_of_scores,
    recall,
    reranked_ranks,
)
from dualfuse.models.base import Tokens
from dualfuse.progress import track

if TYPE_CHECKING:
    from dualfuse.tasks.base import Task

TEXT_TO_IMAGE, IMAGE_TO_TEXT = "text_to_image", "image_to_text"


@torch.inference_mode()
def evaluate_retrieval(task: Task, data: EvaluationData, plan: Plan) -> EvaluationResult:
    """Evaluate the dual encoder on every image of a set with all its texts; re-rank ``plan.rerank`` candidates.

    Tasks without a trained ITM head are evaluated without re-ranking. Raises DualfuseError if ITC was not trained.
    Memory grows with the number of images plus the number of texts, never with their product.
    """
    gallery = Gallery(task, data, plan)
    image, text, texts, owner = gallery.features()
    numbers = torch.arange(len(image), device=image.device)
    directions = {TEXT_TO_IMAGE: (text, image, owner, numbers), IMAGE_TO_TEXT: (image, text, numbers, owner)}
    before = {name: ranks(*direction) for name, direction in directions.items()}
    metrics = _recalls(before)
    results = _results(gallery, directions, before) if plan.answers else {}
    if plan.rerank and task.can_match:
        best = {
            name: nearest(queries, candidates, plan.rerank) for name, (queries, candidates, *_) in directions.items()
        }
        scores = gallery.pair_scores(best[TEXT_TO_IMAGE][1], best[IMAGE_TO_TEXT][1], texts)
        for name, score in zip(directions, scores, strict=True):
            (cosine, index), (_, _, query_of, candidate_of) = best[name], directions[name]
            is_target = candidate_of[index] == query_of[:, None]
            final = task.rerank_score(cosine, score)
            after = reranked_ranks(before[name], is_target, final)
            metrics |= _recalls({f"{name}/reranked": after})
            if plan.answers:
                results[name] = _reranked(results[name], after, gallery.ids(name, owner)[1], index, is_target, final)
    predictions = [each for of_direction in results.values() for each in of_direction]
    return gallery.result(metrics, f"{len(image)} images, {len(text)} texts", predictions)


@torch.inference_mode()
def evaluate_fused_retrieval(task: Task, data: EvaluationData, plan: Plan) -> EvaluationResult:
    """Evaluate the fusion encoder alone, by its score of each pair of an image and a text of a set.

    An image is embedded once, a text once per batch of images; both cost little beside fusing. Memory: four bytes per
    pair. A set whose pairs do not fit into memory would take weeks to fuse.
    """
    gallery = Gallery(task, data, plan)
    texts, owner = gallery.texts()
    scores = gallery.all_scores(texts)
    numbers = torch.arange(len(scores))
    directions = {TEXT_TO_IMAGE: (scores.T, owner, numbers), IMAGE_TO_TEXT: (scores, numbers, owner)}
    ranked = {name: ranks_of_scores(*direction) for name, direction in directions.items()}
    results = list[RetrievedRank]()
    for name, (pairs, query_of, candidate_of) in directions.items() if plan.answers else ():
        best = best_of_scores(pairs, query_of[:, None] == candidate_of)
        results += _joined_results(name, gallery.ids(name, owner), ranked[name], best)
    return gallery.result(_recalls(ranked), f"{len(scores)} images, {len(owner)} texts", results)


Directions = Mapping[str, tuple[Tensor, Tensor, Tensor, Tensor]]
"""Embeddings of queries and candidates, and the numbers of their images, by direction."""


def _results(gallery: Gallery, directions: Directions, ranked: Mapping[str, Tensor]) -> dict[str, list[RetrievedRank]]:
    owner = directions[TEXT_TO_IMAGE][2]
    return {
        name: _joined_results(name, gallery.ids(name, owner), ranked[name], best_targets_and_wrong(*direction))
        for name, direction in directions.items()
    }


def _joined_results(
    name: str, ids: tuple[Sequence[str], Sequence[str]], ranked: Tensor, best: tuple[Tensor, Tensor, Tensor]
) -> list[RetrievedRank]:
    """Return the results of a direction; ``ids`` are those of queries and candidates."""
    queries, candidates = ids
    scores, wrong_scores, indices = (each.tolist() for each in best)
    columns = zip(queries, ranked.tolist(), scores, wrong_scores, indices, strict=True)
    return [
        RetrievedRank(name, query, rank + 1, candidates[int(index)], score, wrong)
        if wrong > -math.inf
        else RetrievedRank(name, query, rank + 1, "", score, None)
        for query, rank, score, wrong, index in columns
    ]


def _reranked(
    results: Sequence[RetrievedRank],
    ranked: Tensor,
    candidates: Sequence[str],
    index: Tensor,
    is_target: Tensor,
    scores: Tensor,
) -> list[RetrievedRank]:
    """Return results with ranks (Q,) after re-ranking; ``index``, ``is_target`` and ``scores`` are (Q, k)."""
    _, wrong, column = best_of_scores(scores, is_target)
    number = index.gather(1, column[:, None])[:, 0]
    return [
        replace(each, reranked_rank=rank + 1, reranked_best_wrong=candidates[best] if score > -math.inf else "")
        for each, rank, best, score in zip(results, ranked.tolist(), number.tolist(), wrong.tolist(), strict=True)
    ]


def _recalls(ranks: dict[str, Tensor]) -> dict[str, float]:
    return {f"{name}/{at}": value for name in ranks for at, value in recall(ranks[name]).items()}


class GalleryExample(TypedDict):
    """One image (3, H, W) with the tokens (T,) of all its texts, and the key of the sample."""

    key: str
    image: Tensor
    texts: tuple[np.ndarray, ...]


def read_gallery(sample: Sample, processor: Processor, rng: np.random.Generator) -> GalleryExample:
    """Return the image and every text; ``BrokenSample`` without a text. Nothing is drawn from ``rng``."""
    if not sample.texts:
        raise BrokenSample(sample.key, "it has no text")
    texts = tuple(processor.text.encode(text).ids for text in sample.texts)
    return {"key": sample.key, "image": processor.image(sample.image, rng), "texts": texts}


def collate_gallery(examples: Sequence[GalleryExample]) -> Batch:
    """Stack the images (B, 3, H, W); the keys, and the texts of each image, stay tuples."""
    return {
        "keys": tuple(example["key"] for example in examples),
        "image": torch.stack([example["image"] for example in examples]),
        "texts": tuple(example["texts"] for example in examples),
    }


@dataclass(frozen=True)
class TextBatch:
    """Tokens of M texts: ``ids`` and ``mask`` (M, T)."""

    ids: Tensor
    mask: Tensor

    @staticmethod
    def of(texts: Sequence[np.ndarray]) -> TextBatch:
        """Pad texts to the longest one."""
        return TextBatch(*pad_texts(texts))

    def take(self, index: Tensor, device: torch.device) -> TextBatch:
        """Return the texts ``index``, no wider than the longest of them."""
        mask = self.mask[index]
        width = int(mask.sum(1).max()) if len(index) else 0
        return TextBatch(self.ids[index, :width].to(device), mask[:, :width].to(device))


class Gallery(Evaluation):
    """The images of a set with all their texts, read from first to last as often as needed; never held all at once."""

    def __init__(self, task: Task, data: EvaluationData, plan: Plan) -> None:
        """``task`` is in evaluation mode."""
        super().__init__(task.model, data, plan)
        self.task = task
        self.keys: list[str] = []
        """Keys of the images, once they were read."""

    def image_batches(self, what: str) -> Iterator[Batch]:
        """Yield the batches of :func:`collate_gallery`."""
        return self.batches(read_gallery, collate_gallery, what=what)

    def features(self) -> tuple[Tensor, Tensor, TextBatch, Tensor]:
        """Return embeddings of images (N, D) and texts (M, D), the texts, and the image number of each text (M,)."""
        images, of_images = list[Tensor](), list[tuple[np.ndarray, ...]]()
        for batch in self.image_batches("images"):
            images.append(self.task.image_features(self.task.model.embed_image(batch["image"])))
            of_images += batch["texts"]
            self.keys += batch["keys"]
        texts, owner = _joined(of_images)
        return torch.cat(images), self.text_embeddings(texts), texts, owner.to(self.device)

    def texts(self) -> tuple[TextBatch, Tensor]:
        """Return all texts, and the image number of each (M,)."""
        of_images = list[tuple[np.ndarray, ...]]()
        for batch in self.image_batches("texts"):
            of_images += batch["texts"]
            self.keys += batch["keys"]
        return _joined(of_images)

    def ids(self, direction: str, owner: Tensor) -> tuple[Sequence[str], Sequence[str]]:
        """Return the identifiers of the queries and the candidates of a direction; ``owner`` (M,) is that of texts."""
        counts, texts = Counter[int](), list[str]()
        for image in owner.tolist():
            texts.append(f"{self.keys[image]}#{counts[image]}")
            counts[image] += 1
        return (texts, self.keys) if direction == TEXT_TO_IMAGE else (self.keys, texts)

    def text_embeddings(self, texts: TextBatch) -> Tensor:
        """Return embeddings (M, D), computed in order of length to save padding."""
        order = texts.mask.sum(1).argsort()
        parts = track(order.split(self.plan.batch_size), total=-(-len(order) // self.plan.batch_size), what="texts")
        embeddings = torch.cat([self.task.text_features(self._embed(texts, part)) for part in parts])
        return torch.empty_like(embeddings).index_copy_(0, order.to(self.device), embeddings)

    def pair_scores(self, images_of: Tensor, texts_of: Tensor, texts: TextBatch) -> tuple[Tensor, Tensor]:
        """Return the ITM scores of candidate images of each text (M, k) and of candidate texts of each image (N, l).

        All pairs of one batch of images are scored together, so that each image is read and embedded once.
        """
        text_queries, image_queries = (
            torch.arange(len(part)).repeat_interleave(part.shape[1]) for part in (images_of, texts_of)
        )
        image_of_pair = torch.cat([images_of.flatten().cpu(), image_queries])
        text_of_pair = torch.cat([text_queries, texts_of.flatten().cpu()])
        scores = self.score_pairs(image_of_pair, text_of_pair, texts)
        return scores[: images_of.numel()].view(images_of.shape), scores[images_of.numel() :].view(texts_of.shape)

    def score_pairs(self, image_of_pair: Tensor, text_of_pair: Tensor, texts: TextBatch) -> Tensor:
        """Return the ITM scores (P,) of pairs of images and texts, by their numbers (P,) on the CPU."""
        scores = torch.empty(len(image_of_pair), dtype=torch.float32, device=self.device)
        first = 0
        for batch in self.image_batches("re-ranking"):
            tokens = self.task.model.embed_image(batch["image"])
            here = ((image_of_pair >= first) & (image_of_pair < first + len(tokens))).nonzero()[:, 0]
            here = here[text_of_pair[here].argsort(stable=True)]
            for pairs in here.split(self.plan.batch_size):
                image = tokens.take((image_of_pair[pairs] - first).to(self.device))
                unique, index = text_of_pair[pairs].unique(return_inverse=True)  # each text is embedded once
                text = self._embed(texts, unique).take(index.to(self.device))
                scores[pairs.to(self.device)] = self.task.match_logit(image, text)
            first += len(tokens)
        return scores

    def all_scores(self, texts: TextBatch) -> Tensor:
        """Return the scores (N, M) of all images with all texts, computed for texts of similar length together."""
        size, scores = self.plan.batch_size, list[Tensor]()
        parts = texts.mask.sum(1).argsort(stable=True).split(size)
        total = -(-len(self.data.samples) // size) * len(parts)
        for image, part in track(self._blocks(parts), total=total, what="images x texts"):
            if part is parts[0]:
                scores.append(torch.empty(len(image), len(texts.ids), dtype=torch.float32))
            text = self._embed(texts, part)
            pairs = torch.cartesian_prod(*(torch.arange(len(side), device=self.device) for side in (image, text)))
            logits = [
                self.task.match_logit(image.take(some[:, 0]), text.take(some[:, 1])) for some in pairs.split(size)
            ]
            scores[-1][:, part] = torch.cat(logits).view(len(image), len(part)).float().cpu()
        return torch.cat(scores)

    def _blocks(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tokens, Tensor]]:
        """Yield each batch of images with each part of the texts."""
        for batch in self.image_batches(""):
            image = self.task.model.embed_image(batch["image"])
            yield from ((image, part) for part in parts)

    def _embed(self, texts: TextBatch, index: Tensor) -> Tokens:
        chosen = texts.take(index, self.device)
        return self.task.model.embed_text(chosen.ids, chosen.mask)


def _joined(of_images: Sequence[Sequence[np.ndarray]]) -> tuple[TextBatch, Tensor]:
    """Return the texts of all images, and the image number of each (M,)."""
    owner = [number for number, texts in enumerate(of_images) for _ in texts]
    return TextBatch.of([ids for texts in of_images for ids in texts]), torch.tensor(owner)
