"""The fusion path, judged: does it know right pairs from wrong ones, and does it find masked words?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.loader import evaluation_batches
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.gallery import Gallery, TextBatch
from dualfuse.evaluation.retrieval import GalleryReader, Plan
from dualfuse.losses.hard_negatives import sample_negatives
from dualfuse.losses.mlm import mlm_loss
from dualfuse.metrics.recall import BLOCK
from dualfuse.models.base import Tokens
from dualfuse.progress import track
from dualfuse.tasks.base import Batch, Processor
from dualfuse.tasks.pretrain.pair_batch import PairExample
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig


@torch.inference_mode()
def evaluate_pairs(task: Pairs, processor: Processor, shards: Shards, plan: Plan) -> dict[str, float]:
    """Return shares of one: what the match head and the word head get right on each image with one of its captions.

    "itm/positive" are the right pairs it accepts. It should reject "itm/random_negative", the caption with any other image,
    and "itm/hard_negative", with the wrong image that is most similar to the dual encoder; "itm/positive_above_hard" is how
    often the right pair scores higher. "mlm/accuracy" are the masked words it finds, "mlm/accuracy_other_image" those it still
    finds beside another image. What the task was not trained for is left out.

    Without contrast no image is known to be similar: "itm/hard_negative" and what follows from it are left out.

    Captions and masks are drawn the same way every time. Memory grows with the number of images, never with its
    square. Raises ``DualfuseError`` when no two images differ.
    """
    reading = _Reading(task, processor, shards, plan)
    seen = _look(task, reading)
    result: dict[str, float] = {}
    if task.cfg.itm_weight:
        result |= _matching(task, reading, seen)
    if task.cfg.mlm_weight:
        result |= {"mlm/accuracy": seen.words.share(), "mlm/accuracy_other_image": seen.other_words.share()}
    return result


@dataclass(frozen=True)
class _Reading:
    """Where pairs come from, and how they are read."""

    task: Pairs
    processor: Processor
    shards: Shards
    plan: Plan

    def batches(self) -> Iterator[Batch]:
        """Return all pairs as training reads them, but images and captions as they are."""
        batch = self.plan.batch_size
        loaded_batches = evaluation_batches(
            self.shards,
            partial(_read, replace(self.task.cfg, tags=""), self.processor),
            self.task.cfg.collate,
            batch_size=batch,
            num_workers=self.plan.num_workers,
            exclude_broken=self.plan.exclude_broken,
        )
        for loaded_batch in track(loaded_batches, total=-(-len(self.shards) // batch), what="pairs"):
            yield loaded_batch.batch


def _read(cfg: PairsConfig, processor: Processor, sample: Sample, rng: np.random.Generator) -> PairExample:
    return cfg.read(sample, processor, rng)


@dataclass
class _Count:
    """How many there were, and how many of them were right."""

    right: float = 0.0
    all: int = 0

    def add(self, task: Pairs, states: Tensor, targets: Tensor) -> None:
        """Count the masked words of one batch."""
        number = int((targets != -100).sum())
        self.right += float(mlm_loss(task.mlm_head, states, targets)[1]) * number
        self.all += number

    def share(self) -> float:
        return self.right / max(1, self.all)


@dataclass(frozen=True)
class _Seen:
    """All N pairs: their unit vectors (N, D), who they are (N,), their texts, and the masked words."""

    image: Tensor
    text: Tensor
    image_id: Tensor
    text_id: Tensor
    texts: TextBatch
    words: _Count
    other_words: _Count


def _look(task: Pairs, reading: _Reading) -> _Seen:
    """Read every pair once: vectors for finding hard negatives, and masked words."""
    device = next(task.parameters()).device
    parts: list[tuple[Tensor, ...]] = []
    rows: list[np.ndarray] = []
    words, other_words = _Count(), _Count()
    for batch in reading.batches():
        rows += [ids[mask].numpy() for ids, mask in zip(batch["ids"], batch["mask"], strict=True)]
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        image = task.model.embed_image(batch["image"])
        text = task.model.embed_text(batch["ids"], batch["mask"])
        embeddings = (task.image_features(image), task.text_features(text)) if task.can_search else 2 * (_none(image),)
        parts.append((*embeddings, batch["image_id"], batch["text_id"]))
        if task.cfg.mlm_weight:
            masked = task.model.embed_text(batch["masked_ids"], batch["mask"])
            fused = task.model.fuse(image, masked, positions=batch["positions"])
            words.add(task, fused.text, batch["targets"])
            other = torch.arange(len(image), device=device).roll(1)
            differs = batch["image_id"] != batch["image_id"][other]
            fused = task.model.fuse(image.take(other), masked, positions=batch["positions"])
            other_words.add(task, fused.text, batch["targets"].where(differs[:, None], -100))
    image, text, image_id, text_id = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Seen(image, text, image_id, text_id, TextBatch.of(rows), words, other_words)


def _none(image: Tokens) -> Tensor:
    return torch.zeros(len(image), 1, device=image.mask.device)


def _matching(task: Pairs, reading: _Reading, seen: _Seen) -> dict[str, float]:
    random, hard, has_negative = _negative_images(seen)
    if not has_negative.any():
        raise DualfuseError(f"{len(seen.image)} pairs show one image or carry one text; matching needs two that differ")
    candidates = torch.stack([torch.arange(len(hard), device=hard.device), random, hard], dim=1)
    gallery = GalleryReader(task, Gallery(reading.processor), reading.shards, reading.plan)
    no_queries = torch.zeros(len(hard), 0, dtype=torch.long)
    scores, _ = gallery.pair_scores(candidates, no_queries, seen.texts)
    right, at_random, at_hard = scores[has_negative].unbind(1)
    said = {
        "itm/positive": scores[:, 0] > 0,
        "itm/random_negative": at_random <= 0,
    }
    if task.can_search:
        said |= {"itm/hard_negative": at_hard <= 0, "itm/positive_above_hard": right > at_hard}
    return {name: answers.float().mean().item() for name, answers in said.items()}


def _negative_images(seen: _Seen) -> tuple[Tensor, Tensor, Tensor]:
    """Return each text a wrong image at random and the most similar one (N,), and whether there is any (N,).

    An image that shows the same or is called the same is not wrong.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    columns = (part.split(BLOCK) for part in (seen.text, seen.image_id, seen.text_id))
    for text, image_id, text_id in zip(*columns, strict=True):
        allowed = (image_id[:, None] != seen.image_id) & (text_id[:, None] != seen.text_id)
        similar = text @ seen.image.T
        noise = torch.rand(similar.shape, generator=generator).to(similar)
        random, has_negative = sample_negatives(torch.zeros_like(similar), allowed, noise)
        hard, _ = sample_negatives(similar, allowed, torch.zeros_like(similar))
        found.append((random, hard, has_negative))
    random, hard, has_negative = (torch.cat(column) for column in zip(*found, strict=True))
    return random, hard, has_negative
