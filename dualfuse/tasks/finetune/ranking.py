"""Retrieval by ranking the text of an image among negatives (METER, arXiv 2111.02387; BridgeTower's irtr)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dualfuse import distributed as dist
from dualfuse.config import check_numbers
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE, evaluate_fused_retrieval
from dualfuse.evaluation.runner import EvaluationData, EvaluationResult, Plan
from dualfuse.layers.heads import init_linear
from dualfuse.losses.grad_cache import grad_cache
from dualfuse.losses.hard_negatives import gumbel, negative_groups, sample_hard_negatives, split_pairs
from dualfuse.losses.itc import Positives, find_positives, gather_similarities
from dualfuse.losses.itm import itm_accuracy, itm_loss
from dualfuse.losses.ranking import rank_loss, sample_texts
from dualfuse.metrics.base import MetricInfo
from dualfuse.metrics.recall import recall_infos
from dualfuse.models.base import Tokens, VisionLanguageModel, check_fusion
from dualfuse.tasks.base import Task, TaskConfig, TaskOutput, detached
from dualfuse.tasks.pretrain.pair_batch import PairBatch, PairExample, collate_pairs, pad_to_global_length, read_pair


@dataclass(frozen=True)
class RankingConfig(TaskConfig):
    """Negatives, the ITM loss and memory."""

    num_negatives: int = 15
    """Negative texts per image, drawn from the (micro-)batches of all processes: fewer where there are fewer."""
    itm_weight: float = 0.0
    """Weight of an ITM loss that is trained beside the ranking loss: half of the pairs get a random image of the same
    training set, and the ITM head that the run starts with classifies them, frozen. 1: as in the official code of METER
    and BridgeTower; 0: no ITM loss."""
    grad_cache_chunk: int = 0
    """Pairs per fusion pass with gradient caching, which needs less memory and about a third more compute; 0: all."""
    init_std: float = 0.02
    """Standard deviation of the initial weights of the head, unless ``start_from`` has an ITM head."""

    def __post_init__(self) -> None:
        """Validate the numbers."""
        check_numbers(self, not_negative=("itm_weight", "grad_cache_chunk"))
        if self.num_negatives < 1:
            raise DualfuseError(f"num_negatives is {self.num_negatives}; it should be at least 1")

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> PairExample:
        """Draw one of the captions, and transform the image."""
        return read_pair(sample, processor, rng)

    def collate(self, examples: Sequence[PairExample]) -> PairBatch:
        """Pad the texts to the longest one."""
        return collate_pairs(examples)

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare recall in both directions."""
        return recall_infos(TEXT_TO_IMAGE, IMAGE_TO_TEXT)

    def build(self, model: VisionLanguageModel) -> Ranking:
        """Return the task with a fresh head."""
        return Ranking(self, model)


class Ranking(Task):
    """Scores pairs with the fusion encoder alone; there are no embeddings, so every pair that is compared is fused."""

    cfg: RankingConfig

    def __init__(self, cfg: RankingConfig, model: VisionLanguageModel) -> None:
        """The score is the second output of an ITM head, so that it is initialised from one, as published."""
        super().__init__()
        self.cfg, self.model = cfg, model
        check_fusion(model)
        self.itm_head = nn.Linear(model.fused_width, 2)
        init_linear(self.itm_head, cfg.init_std)
        if cfg.itm_weight:
            self.frozen_itm_head = deepcopy(self.itm_head).requires_grad_(False)

    @property
    def initial_copies(self) -> Mapping[str, str]:
        """The frozen ITM head starts as the ITM head does, which then becomes the ranking head."""
        parts = ("weight", "bias") if self.cfg.itm_weight else ()
        return {f"frozen_itm_head.{part}": f"itm_head.{part}" for part in parts}

    def forward(self, batch: PairBatch) -> TaskOutput:
        """Rank the text of each image among negatives: texts that belong to no pair with the same image or text.

        With ``itm_weight`` the weighted ITM loss is added.
        """
        batch = pad_to_global_length(batch)
        positives = find_positives(batch["image_id"], batch["text_id"])
        own = torch.arange(len(batch["image"]), device=batch["ids"].device) + dist.rank() * len(batch["image"])
        noise = gumbel(dist.draw_shared(), own, len(own) * dist.world_size())  # equal on all processes
        negatives, drawn = sample_texts(~positives.texts_of_images, self.cfg.num_negatives, noise)
        image = self.model.embed_image(batch["image"])
        scores = self.scores(image, batch["ids"], batch["mask"], torch.cat([own[:, None], negatives], dim=1))
        loss, accuracy = rank_loss(scores, drawn)
        log = {"loss": loss, "accuracy/rank": accuracy, "negatives": drawn.sum(1).float().mean()}
        if self.cfg.itm_weight:
            logits, has_negative = self.itm_logits(batch, image, positives)
            itm = itm_loss(logits, has_negative)
            log |= {"loss/rank": loss, "loss/itm": itm} | itm_accuracy(logits, has_negative)
            log["loss"] = loss = loss + self.cfg.itm_weight * itm
        avoided = positives.texts_of_images.sum() - len(own)
        return TaskOutput(loss, detached(log | {"count/false_negatives_avoided": avoided}))

    def itm_logits(self, batch: PairBatch, image: Tokens, positives: Positives) -> tuple[Tensor, Tensor]:
        """Return logits (B, 2) of the frozen ITM head, and whether each negative could be drawn.

        Of B pairs one half is classified as it is, first; the texts of the other half get an image of another pair of
        their training set, from all processes (``compute_itm`` and ``draw_false_image=1`` of the official code, which
        draws from the whole set).
        """
        kept, texts, no_images = split_pairs(torch.arange(len(image), device=image.device), 0)
        zeros = torch.zeros(len(image), 1, device=image.device)
        similarities, groups = gather_similarities(zeros, zeros, zeros[0]), negative_groups("source", batch["source"])
        negatives, _, has_negative = sample_hard_negatives(
            similarities, positives, groups, texts, no_images, hardness=0.0
        )
        false = self.model.embed_image(dist.fetch_examples(batch["image"], negatives))
        images, numbers = Tokens.join([image.take(kept), false]), torch.cat([kept, texts])
        text = self.model.embed_text(batch["ids"], batch["mask"])

        def fuse(image_index: Tensor, text_index: Tensor) -> tuple[Tensor]:
            return (self.frozen_itm_head(self._pooled(images.take(image_index), text.take(text_index))).float(),)

        [logits] = grad_cache(
            fuse, self.cfg.grad_cache_chunk, torch.arange(len(numbers), device=numbers.device), numbers
        )
        return logits, has_negative

    def scores(self, image: Tokens, ids: Tensor, mask: Tensor, texts: Tensor) -> Tensor:
        """Return the scores (B, C) of each image with its ``texts`` (B, C), indices into the texts of all processes.

        ``ids`` and ``mask`` (M, T) are the texts of this process. Each text that occurs is embedded once.
        """
        unique, text_index = texts.flatten().unique(return_inverse=True)
        text = self.model.embed_text(dist.fetch_examples(ids, unique), dist.fetch_examples(mask, unique))
        image_index = torch.arange(len(image), device=text_index.device).repeat_interleave(texts.shape[1])

        def fuse(images: Tensor, texts: Tensor) -> tuple[Tensor]:
            return (self.match_logit(image.take(images), text.take(texts)),)

        [scores] = grad_cache(fuse, self.cfg.grad_cache_chunk, image_index, text_index)
        return scores.view(texts.shape)

    def evaluate(self, data: EvaluationData, plan: Plan) -> EvaluationResult:
        """Return recall at 1, 5 and 10 in both directions, by fusing all pairs of the set."""
        return evaluate_fused_retrieval(self, data, plan)

    @property
    def has_sample_results(self) -> bool:
        """Ranks of queries."""
        return True

    @property
    def can_match(self) -> bool:
        """Scores of pairs are what this task trains."""
        return True

    def match_logit(self, image: Tokens, text: Tokens) -> Tensor:
        """Return the score (B,) of each pair, higher for matching pairs; only differences have a meaning."""
        return self.itm_head(self._pooled(image, text)).float()[:, 1]

    def _pooled(self, image: Tokens, text: Tokens) -> Tensor:
        """Return the pooled fused states of pairs."""
        no_states = torch.zeros(len(text), 0, dtype=torch.long, device=text.mask.device)
        return self.model.fuse(image, text, positions=no_states).pooled

    def check_search(self) -> None:
        """Raise DualfuseError: there are no embeddings."""
        raise DualfuseError(
            "this model ranks pairs, and has no embeddings to search with: it would fuse every image with the query. "
            "Evaluate it with dualfuse evaluate; to search, fine-tune with ITC (coco-bridgetower-base, coco-vlmo-base)"
        )
