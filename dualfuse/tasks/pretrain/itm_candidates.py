"""What ITM learns from on one batch: single pairs (VLMo, section 3.3), or lists of candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from dualfuse import distributed as dist
from dualfuse.errors import DualfuseError
from dualfuse.losses.grad_cache import Embeddings
from dualfuse.losses.hard_negatives import negative_groups, sample_hard_negatives, split_pairs
from dualfuse.losses.itc import Positives, Similarities
from dualfuse.losses.itm import itm_accuracy, itm_loss
from dualfuse.losses.listwise import (
    Candidates,
    candidate_logits,
    distillation_loss,
    listwise_accuracy,
    listwise_loss,
    sample_candidates,
    threshold_loss,
)
from dualfuse.models.base import Tokens
from dualfuse.tasks.pretrain.late_scores import LateScores
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

    def with_edits(self, exist: Tensor, itc_logits: Tensor) -> ITMTargets:
        """Return the targets with false edits of each caption after the other pairs, and their ITC logits (B, E)."""
        ...

    def with_late(self, late: LateScores) -> ITMTargets:
        """Return the targets whose scores include late interaction."""
        ...


@dataclass(frozen=True)
class SinglePairs:
    """Positive pairs, then negative pairs, each classified by itself."""

    has_negative: Tensor
    """Which negative pairs (K,) could be drawn."""
    edits: int = 0
    """Number of negative pairs, the last ones, whose text is an edit."""

    def loss(self, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return cross-entropy and accuracies."""
        loss, metrics = itm_loss(logits, self.has_negative), itm_accuracy(logits, self.has_negative)
        if self.edits:
            correct = (logits[-self.edits :].argmax(1) == 0) & self.has_negative[-self.edits :]
            metrics["accuracy/itm_edits"] = correct.sum() / self.has_negative[-self.edits :].sum().clamp(min=1)
        return loss, metrics

    def with_edits(self, exist: Tensor, itc_logits: Tensor) -> SinglePairs:
        """Return the targets with further negative pairs."""
        return SinglePairs(torch.cat([self.has_negative, exist.flatten()]), exist.numel())

    def with_late(self, late: LateScores) -> SinglePairs:
        """Raise DualfuseError: single pairs are not scored by the dual encoder."""
        raise DualfuseError("late interaction is a part of list-wise scores; set itm_loss to listwise")


@dataclass(frozen=True)
class CandidateLists:
    """Positive pairs (B), then the wrong images of each text (B * K), then the wrong texts of each image (B * K).

    False edits of captions come last: (B * E) further wrong texts.
    """

    images: Candidates
    texts: Candidates
    threshold: Tensor
    scale: Tensor
    edits: int = 0
    """Number E of edits; they are the last of ``texts.valid`` and ``texts.logits``."""
    students: tuple[Tensor, ...] = ()
    """ITC logits of the candidates, with gradient, for images and texts; empty: the fused order is not distilled."""
    distill_weight: float = 0.0

    def with_edits(self, exist: Tensor, itc_logits: Tensor) -> CandidateLists:
        """Return lists of texts that end in the edits."""
        valid = torch.cat([self.texts.valid, exist], dim=1)
        texts = replace(self.texts, valid=valid, logits=torch.cat([self.texts.logits, itc_logits.detach()], dim=1))
        students = self.students and (self.students[0], torch.cat([self.students[1], itc_logits], dim=1))
        return replace(self, texts=texts, edits=exist.shape[1], students=students)

    def with_late(self, late: LateScores) -> CandidateLists:
        """Return lists whose logits include the late logits, without gradient."""
        sides = ((self.images, late.text_to_image), (self.texts, late.image_to_text))
        images, texts = (
            replace(side, logits=side.logits + logits.detach().gather(1, side.columns)) for side, logits in sides
        )
        return replace(self, images=images, texts=texts)

    def loss(self, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean list-wise loss of both directions plus that of the threshold, and accuracies.

        A candidate's score is its ITC logit, without gradient, plus the log-odds of the head.
        """
        log_odds = logits[:, 1] - logits[:, 0]
        count, size = self.images.numbers.shape
        right, images, texts, edits = log_odds.split([count, count * size, count * size, count * self.edits])
        texts = torch.cat([texts.view(count, size), edits.view(count, self.edits)], dim=1)
        losses, metrics = list[Tensor](), dict[str, Tensor]()
        sides = (("image", self.images, images), ("text", self.texts, texts))
        for side, (name, candidates, wrong) in enumerate(sides):
            scores = candidates.logits + torch.cat([right[:, None], wrong.view(count, -1)], dim=1)
            threshold = threshold_loss(scores, candidates.valid, self.threshold, self.scale)
            losses.append(listwise_loss(scores, candidates.valid) + threshold)
            if self.students:
                distilled = distillation_loss(self.students[side], scores, candidates.valid)
                losses[-1] = losses[-1] + self.distill_weight * distilled
                metrics[f"loss/distill_{name}"] = distilled
            metrics[f"accuracy/itm_right_{name}"] = listwise_accuracy(scores, candidates.valid)
            metrics[f"accuracy/itc_right_{name}"] = listwise_accuracy(candidates.logits, candidates.valid)
            if name == "text" and self.edits:
                metrics["accuracy/itm_edits"] = _edit_accuracy(scores, candidates.valid, self.edits)
        return torch.stack(losses).mean(), metrics


def _edit_accuracy(scores: Tensor, valid: Tensor, edits: int) -> Tensor:
    """Return the share of captions with edits that score higher than all their edits."""
    has_edit = valid[:, -edits:].any(1)
    right = torch.cat([scores[:, :1], scores[:, -edits:]], dim=1)[has_edit]
    return listwise_accuracy(right, valid[has_edit, -edits:]) if len(right) else scores.new_ones(())


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
    students: tuple[Tensor, ...] = ()
    if cfg.distill_weight:
        students = (
            candidate_logits(similarities.text, similarities.all_images, images.columns, similarities.scale),
            candidate_logits(similarities.image, similarities.all_texts, texts.columns, similarities.scale),
        )
    number = images.numbers.shape[1]
    repeated = torch.arange(len(image), device=image.device).repeat_interleave(number)
    wrong_images = _take(task, image, images.numbers.flatten(), task.model.embed_image, batch["image"])
    wrong_texts = _take_texts(task, batch, text, texts.numbers.flatten())
    pairs = [(text, image), (text.take(repeated), wrong_images), (wrong_texts, image.take(repeated))]
    lists = CandidateLists(images, texts, threshold, similarities.scale, 0, students, cfg.distill_weight)
    return pairs, lists


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
