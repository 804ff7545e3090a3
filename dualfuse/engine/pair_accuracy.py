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
from dualfuse.data.shards import Shards
from dualfuse.engine.evaluate import Pass, Plan
from dualfuse.engine.progress import following
from dualfuse.models.base import Tokens
from dualfuse.tasks.base import Batch, Prep
from dualfuse.tasks.contrast import draw_negatives
from dualfuse.tasks.metrics import BLOCK
from dualfuse.tasks.pair_rows import PairRow
from dualfuse.tasks.pairs import Pairs, PairsConfig
from dualfuse.tasks.retrieval import Gallery, Texts


@torch.inference_mode()
def pair_accuracy(task: Pairs, prep: Prep, shards: Shards, plan: Plan) -> dict[str, float]:
    """Gives shares of one: what the match head and the word head get right on each picture with one of its captions.

    "match/right" are the right pairs it accepts. It should reject "match/random", the caption with any other picture,
    and "match/hard", with the wrong picture that is most similar to the dual encoder; "match/right_beats_hard" is how
    often the right pair scores higher. "words" are the masked words it finds, "words/other_picture" those it still
    finds beside another picture. What the task was not trained for is left out.

    Without contrast no picture is known to be similar: "match/hard" and what follows from it are left out.

    Captions and masks are drawn the same way every time. Memory grows with the number of pictures, never with its
    square. Raises ``ValueError`` when no two pictures differ.
    """
    reading = _Reading(task, prep, shards, plan)
    seen = _look(task, reading)
    result: dict[str, float] = {}
    if task.cfg.match:
        result |= _matching(task, reading, seen)
    if task.cfg.words:
        result |= {"words": seen.words.share(), "words/other_picture": seen.other_words.share()}
    return result


@dataclass(frozen=True)
class _Reading:
    """Where pairs come from, and how they are read."""

    task: Pairs
    prep: Prep
    shards: Shards
    plan: Plan

    def batches(self) -> Iterator[Batch]:
        """Gives all pairs as training reads them, but pictures and captions as they are."""
        batch = self.plan.batch
        deliveries = evaluation_batches(
            self.shards,
            partial(_read, replace(self.task.cfg, tags=""), self.prep),
            self.task.cfg.collate,
            batch=batch,
            workers=self.plan.workers,
            exclude_broken=self.plan.exclude_broken,
        )
        for delivery in following(deliveries, total=-(-len(self.shards) // batch), what="pairs"):
            yield delivery.batch


def _read(cfg: PairsConfig, prep: Prep, sample: Sample, rng: np.random.Generator) -> PairRow:
    return cfg.read(sample, prep, rng)


@dataclass
class _Count:
    """How many there were, and how many of them were right."""

    right: float = 0.0
    all: int = 0

    def add(self, task: Pairs, states: Tensor, targets: Tensor) -> None:
        """Counts the masked words of one batch."""
        number = int((targets != -100).sum())
        self.right += float(task.word_head.loss(states, targets)[1]) * number
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
    texts: Texts
    words: _Count
    other_words: _Count


def _look(task: Pairs, reading: _Reading) -> _Seen:
    """Reads every pair once: vectors for finding hard negatives, and masked words."""
    device = next(task.parameters()).device
    parts: list[tuple[Tensor, ...]] = []
    rows: list[np.ndarray] = []
    words, other_words = _Count(), _Count()
    for batch in reading.batches():
        rows += [ids[mask].numpy() for ids, mask in zip(batch["ids"], batch["mask"], strict=True)]
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        image = task.model.embed_image(batch["image"])
        text = task.model.embed_text(batch["ids"], batch["mask"])
        vectors = (task.image_features(image), task.text_features(text)) if task.can_search else 2 * (_none(image),)
        parts.append((*vectors, batch["image_id"], batch["text_id"]))
        if task.cfg.words:
            masked = task.model.embed_text(batch["masked_ids"], batch["mask"])
            fused = task.model.fuse(image, masked, rows=batch["rows"])
            words.add(task, fused.text, batch["targets"])
            other = torch.arange(len(image), device=device).roll(1)
            differs = batch["image_id"] != batch["image_id"][other]
            fused = task.model.fuse(image.take(other), masked, rows=batch["rows"])
            other_words.add(task, fused.text, batch["targets"].where(differs[:, None], -100))
    image, text, image_id, text_id = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Seen(image, text, image_id, text_id, Texts.of(rows), words, other_words)


def _none(image: Tokens) -> Tensor:
    return torch.zeros(len(image), 1, device=image.mask.device)


def _matching(task: Pairs, reading: _Reading, seen: _Seen) -> dict[str, float]:
    random, hard, has_wrong = _wrong_pictures(seen)
    if not has_wrong.any():
        raise ValueError(f"{len(seen.image)} pairs show one picture or carry one text; matching needs two that differ")
    candidates = torch.stack([torch.arange(len(hard), device=hard.device), random, hard], dim=1)
    gallery = Pass(task, Gallery(reading.prep), reading.shards, reading.plan)
    no_queries = torch.zeros(len(hard), 0, dtype=torch.long)
    scores, _ = gallery.pair_scores(candidates, no_queries, seen.texts)
    right, at_random, at_hard = scores[has_wrong].unbind(1)
    said = {
        "match/right": scores[:, 0] > 0,
        "match/random": at_random <= 0,
    }
    if task.can_search:
        said |= {"match/hard": at_hard <= 0, "match/right_beats_hard": right > at_hard}
    return {name: answers.float().mean().item() for name, answers in said.items()}


def _wrong_pictures(seen: _Seen) -> tuple[Tensor, Tensor, Tensor]:
    """Gives each text a wrong picture at random and the most similar one (N,), and whether there is any (N,).

    A picture that shows the same or is called the same is not wrong.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    columns = (part.split(BLOCK) for part in (seen.text, seen.image_id, seen.text_id))
    for text, image_id, text_id in zip(*columns, strict=True):
        allowed = (image_id[:, None] != seen.image_id) & (text_id[:, None] != seen.text_id)
        similar = text @ seen.image.T
        noise = torch.rand(similar.shape, generator=generator).to(similar)
        random, has_wrong = draw_negatives(torch.zeros_like(similar), allowed, noise)
        hard, _ = draw_negatives(similar, allowed, torch.zeros_like(similar))
        found.append((random, hard, has_wrong))
    random, hard, has_wrong = (torch.cat(column) for column in zip(*found, strict=True))
    return random, hard, has_wrong
