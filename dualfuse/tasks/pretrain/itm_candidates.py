"""What ITM learns from on one batch: single pairs (VLMo, section 3.3), or lists of candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from dualfuse import distributed as dist
from dualfuse.losses.grad_cache import Embeddings
from dualfuse.losses.hard_negatives import negative_groups, sample_hard_negatives, split_pairs
from dualfuse.losses.itc import Positives, Similarities
from dualfuse.losses.itm import itm_accuracy, itm_loss
from dualfuse.losses.listwise import Candidates, listwise_accuracy, listwise_loss, sample_candidates, threshold_loss
from dualfuse.models.base import Tokens
from dualfuse.tasks.pretrain.pair_batch import PairBatch

if TYPE_CHECKING:
    from dualfuse.tasks.pretrain.pairs import Pairs

Fusions = list[tuple[Embeddings, Embeddings]]
"""Batches of texts and images that are fused, the positive pairs first."""


class ITMTargets(Protocol):
    """Computes the loss of the fused pairs of one batch."""

    def loss(self, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and metrics for the logits (M, 2) of the ITM head for all fused pairs."""
        ...


@dataclass(frozen=True)
class SinglePairs:
    """Positive pairs, then negative pairs, each classified by itself."""

    has_negative: Tensor
    """Which negative pairs (K,) could be drawn."""

    def loss(self, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return cross-entropy and accuracies."""
        return itm_loss(logits, self.has_negative), itm_accuracy(logits, self.has_negative)


@dataclass(frozen=True)
class CandidateLists:
    """Positive pairs (B), then the wrong images of each text (B * K), then the wrong texts of each image (B * K)."""

    images: Candidates
    texts: Candidates
    threshold: Tensor
    scale: Tensor

    def loss(self, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean list-wise loss of both directions plus that of the threshold, and accuracies.

        A candidate's score is its ITC logit, without gradient, plus the log-odds of the head.
        """
        log_odds = logits[:, 1] - logits[:, 0]
        count, size = self.images.numbers.shape
        right, images, texts = log_odds.split([count, count * size, count * size])
        losses, metrics = list[Tensor](), dict[str, Tensor]()
        for name, candidates, wrong in (("image", self.images, images), ("text", self.texts, texts)):
            scores = candidates.logits + torch.cat([right[:, None], wrong.view(count, size)], dim=1)
            threshold = threshold_loss(scores, candidates.valid, self.threshold, self.scale)
            losses.append(listwise_loss(scores, candidates.valid) + threshold)
            metrics[f"accuracy/itm_right_{name}"] = listwise_accuracy(scores, candidates.valid)
            metrics[f"accuracy/itc_right_{name}"] = listwise_accuracy(candidates.logits, candidates.valid)
        return torch.stack(losses).mean(), metrics


def single_pairs(
    task: Pairs, batch: PairBatch, image: Embeddings, text: Embeddings, similarities: Similarities, positives: Positives
) -> tuple[Fusions, ITMTargets]:
    """Return positive pairs and pairs with hard negatives."""
    cfg = task.cfg
    kept, texts, images = split_pairs(torch.arange(len(image), device=image.device), cfg.negatives_per_pair)
    negative_images, negative_texts, has_negative = sample_hard_negatives(
        similarities,
        positives,
        _groups(task, batch),
        texts,
        images,
        hardness=cfg.negative_hardness,
        chunk=cfg.grad_cache_chunk,
    )
    pairs = [(text, image) if cfg.negatives_per_pair else (text.take(kept), image.take(kept))]
    pairs += [(text.take(texts), _take(task, image, negative_images, task.model.embed_image, batch["image"]))]
    if len(images):
        pairs += [(_take_texts(task, batch, text, negative_texts), image.take(images))]
    return pairs, SinglePairs(has_negative)


def candidate_lists(
    task: Pairs, batch: PairBatch, image: Embeddings, text: Embeddings, similarities: Similarities, positives: Positives
) -> tuple[Fusions, ITMTargets]:
    """Return positive pairs, and each text and image with wrong candidates."""
    cfg, threshold = task.cfg, task.match_threshold
    assert threshold is not None  # of every list-wise task
    images, texts = sample_candidates(
        similarities,
        positives,
        _groups(task, batch),
        cfg.itm_candidates,
        hardness=cfg.negative_hardness,
        chunk=cfg.grad_cache_chunk,
    )
    number = images.numbers.shape[1]
    repeated = torch.arange(len(image), device=image.device).repeat_interleave(number)
    wrong_images = _take(task, image, images.numbers.flatten(), task.model.embed_image, batch["image"])
    wrong_texts = _take_texts(task, batch, text, texts.numbers.flatten())
    pairs = [(text, image), (text.take(repeated), wrong_images), (wrong_texts, image.take(repeated))]
    return pairs, CandidateLists(images, texts, threshold, similarities.scale)


def _groups(task: Pairs, batch: PairBatch) -> tuple[Tensor, Tensor]:
    negatives = task.cfg.negatives
    return negative_groups(negatives, batch["source"] if negatives == "source" else batch["image_id"])


def _take_texts(task: Pairs, batch: PairBatch, text: Embeddings, numbers: Tensor) -> Embeddings:
    inputs = batch["masked_ids" if task.cfg.itm_on_masked_text else "ids"], batch["mask"]
    return _take(task, text, numbers, task.model.embed_text, *inputs)


def _take(task: Pairs, local: Embeddings, numbers: Tensor, embed: Callable[..., Tokens], *inputs: Tensor) -> Embeddings:
    """Return the examples ``numbers`` (K,) of the global batch; those of other processes are embedded again."""
    if dist.world_size() == 1 or task.cfg.negatives == "local":
        return local.take(numbers - dist.rank() * len(local))
    return task.embed(embed, *(dist.fetch_examples(part, numbers) for part in inputs))
