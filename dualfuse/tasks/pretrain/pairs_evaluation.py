"""Evaluation of ITM and MLM on image-text pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.loader import Batch
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.retrieval import Gallery, TextBatch
from dualfuse.evaluation.runner import Evaluation, EvaluationData, EvaluationResult, Plan
from dualfuse.losses.hard_negatives import sample_negatives
from dualfuse.losses.mlm import mlm_loss
from dualfuse.metrics.recall import BLOCK
from dualfuse.models.base import Tokens

if TYPE_CHECKING:
    from dualfuse.tasks.pretrain.pairs import Pairs


@torch.inference_mode()
def evaluate_pairs(task: Pairs, data: EvaluationData, plan: Plan) -> EvaluationResult:
    """Return the accuracies of the ITM and MLM heads on each image with one of its captions; untrained heads have none.

    - "itm/positive": positive pairs that are accepted.
    - "itm/random_negative": captions that are rejected with a random other image.
    - "itm/hard_negative": captions that are rejected with the most similar other image, by the dual encoder.
    - "itm/positive_above_hard": positive pairs that score higher than this hard negative.
    - "mlm/accuracy", "mlm/accuracy_other_image": masked tokens predicted with the image, and with another one.

    Hard negatives need ITC. Captions and masks are the same in every evaluation. Memory grows with the number of
    images, never with its square. Raises DualfuseError if no two images differ.
    """
    run = Evaluation(task, data, plan)
    pairs = _embed_pairs(task, run)
    metrics = _itm_accuracies(task, data, plan, pairs) if task.cfg.itm_weight else {}
    return run.result(metrics | pairs.mlm, f"{len(data.samples)} pairs")


@dataclass(frozen=True)
class _Pairs:
    """Unit embeddings (N, D) and content ids (N,) of N pairs, their texts, and the accuracies of MLM."""

    image: Tensor
    text: Tensor
    image_id: Tensor
    text_id: Tensor
    texts: TextBatch
    mlm: dict[str, float]


def _embed_pairs(task: Pairs, run: Evaluation) -> _Pairs:
    """Read every pair once, without tags: embed both sides, and predict masked tokens."""
    parts: list[tuple[Tensor, ...]] = []
    texts: list[np.ndarray] = []
    correct, masked = defaultdict[str, float](float), defaultdict[str, int](int)
    for batch in run.batches(replace(task.cfg, tags="").read, task.cfg.collate, what="pairs"):
        texts += [ids[mask].numpy() for ids, mask in zip(batch["ids"].cpu(), batch["mask"].cpu(), strict=True)]
        image = task.model.embed_image(batch["image"])
        text = task.model.embed_text(batch["ids"], batch["mask"])
        untrained = torch.zeros(len(image), 1, dtype=torch.float32, device=run.device)
        embeddings = (task.image_features(image), task.text_features(text)) if task.can_search else 2 * (untrained,)
        parts.append((*embeddings, batch["image_id"], batch["text_id"]))
        if task.cfg.mlm_weight:
            for name, accuracy, number in _mlm_accuracies(task, batch, image):
                correct[name] += accuracy * number
                masked[name] += number
    image, text, image_id, text_id = (torch.cat(column) for column in zip(*parts, strict=True))
    mlm = {name: correct[name] / max(1, number) for name, number in masked.items()}
    return _Pairs(image, text, image_id, text_id, TextBatch.of(texts), mlm)


def _mlm_accuracies(task: Pairs, batch: Batch, image: Tokens) -> Iterator[tuple[str, float, int]]:
    """Yield the name of a metric, its value in a batch, and its number of masked tokens."""
    masked = task.model.embed_text(batch["masked_ids"], batch["mask"])
    other = torch.arange(len(image), device=image.device).roll(1)
    differs = batch["image_id"] != batch["image_id"][other]
    for name, images, targets in (
        ("mlm/accuracy", image, batch["targets"]),
        ("mlm/accuracy_other_image", image.take(other), batch["targets"].where(differs[:, None], -100)),
    ):
        states = task.model.fuse(images, masked, positions=batch["positions"]).text
        yield name, float(mlm_loss(task.mlm_head, states, targets)[1]), int((targets != -100).sum())


def _itm_accuracies(task: Pairs, data: EvaluationData, plan: Plan, pairs: _Pairs) -> dict[str, float]:
    random, hard, has_negative = _negative_images(pairs)
    if not has_negative.any():
        raise DualfuseError(f"{len(pairs.image)} pairs have one image or one text; ITM needs two that differ")
    candidates = torch.stack([torch.arange(len(hard), device=hard.device), random, hard], dim=1)
    no_queries = torch.zeros(len(hard), 0, dtype=torch.long)
    scores, _ = Gallery(task, data, plan).pair_scores(candidates, no_queries, pairs.texts)
    positive, at_random, at_hard = scores[has_negative].unbind(1)
    correct = {"itm/positive": scores[:, 0] > 0, "itm/random_negative": at_random <= 0}
    if task.can_search:
        correct |= {"itm/hard_negative": at_hard <= 0, "itm/positive_above_hard": positive > at_hard}
    return {name: values.float().mean().item() for name, values in correct.items()}


def _negative_images(pairs: _Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each text a random negative image and the most similar one (N,), and whether there is any (N,).

    Images with the same content, and images of the same caption, are not negatives.
    """
    generator = torch.Generator().manual_seed(0)
    blocks = []
    columns = (part.split(BLOCK) for part in (pairs.text, pairs.image_id, pairs.text_id))
    for text, image_id, text_id in zip(*columns, strict=True):
        allowed = (image_id[:, None] != pairs.image_id) & (text_id[:, None] != pairs.text_id)
        similarity = text @ pairs.image.T
        noise = torch.rand(similarity.shape, generator=generator).to(similarity)
        random, has_negative = sample_negatives(torch.zeros_like(similarity), allowed, noise)
        hard, _ = sample_negatives(similarity, allowed, torch.zeros_like(similarity))
        blocks.append((random, hard, has_negative))
    random, hard, has_negative = (torch.cat(column) for column in zip(*blocks, strict=True))
    return random, hard, has_negative
