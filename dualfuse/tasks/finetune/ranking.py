"""Retrieval trained by ranking: an image's text among false ones (METER, arXiv 2111.02387; BridgeTower's irtr)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dualfuse import distributed as dist
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import init_linear
from dualfuse.losses.grad_cache import grad_cache
from dualfuse.losses.hard_negatives import gumbel
from dualfuse.losses.itc import find_positives
from dualfuse.losses.ranking import rank_loss, sample_texts
from dualfuse.models.base import Tokens, VisionLanguageModel
from dualfuse.tasks.base import Processor, Task, TaskOutput, detached
from dualfuse.tasks.pretrain.pair_batch import PairBatch, PairExample, collate_pairs, content_id, pad_to_global_length


@dataclass(frozen=True)
class RankingConfig:
    """How many false texts an image is ranked against; the default is the published one."""

    num_negatives: int = 15
    """For each image, drawn from the texts of the (micro-)batch of all processes: fewer where there are fewer."""
    grad_cache_chunk: int = 0
    """Pairs that are fused at a time; 0: all. A small number costs a third more work and saves much memory."""
    init_std: float = 0.02
    """Standard deviation of the head's first weights, where the start has no match head."""

    def __post_init__(self) -> None:
        """Refuse to rank a text among none."""
        if self.num_negatives < 1:
            raise DualfuseError(f"false_texts is {self.num_negatives}; a text is ranked among at least 1 false one")

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> PairExample:
        """Draw one of the captions, and transforms the image."""
        if not sample.texts:
            raise BrokenSample(sample.key, "it has no text")
        caption = sample.texts[rng.integers(len(sample.texts))]
        ids = processor.text.encode(caption).ids
        return {
            "image": processor.image(sample.image, rng),
            "ids": ids,
            "masked_ids": ids,
            "labels": np.full_like(ids, -100),  # no word is masked
            "image_id": content_id(sample.image),
            "text_id": content_id(caption.casefold().encode()),
            "source": sample.source,
        }

    def collate(self, rows: Sequence[PairExample]) -> PairBatch:
        """Pad the texts to the longest of them."""
        return collate_pairs(rows)

    def build(self, model: VisionLanguageModel) -> Ranking:
        """Return the task with a fresh head."""
        return Ranking(self, model)


class Ranking(Task):
    """Scores pairs with the fusion path alone; there are no vectors, so every pair that is compared is fused."""

    can_search = False
    can_match = True

    def __init__(self, cfg: RankingConfig, model: VisionLanguageModel) -> None:
        """The rank is the second row of a match head, so that it begins as that of the start, and as published."""
        super().__init__()
        self.cfg, self.model = cfg, model
        self.itm_head = nn.Linear(model.fused_width, 2)
        init_linear(self.itm_head, cfg.init_std)

    def forward(self, batch: PairBatch) -> TaskOutput:
        """Rank each text among false ones, which are of no pair with the same image, and are no text of its own."""
        batch = pad_to_global_length(batch)
        positives = find_positives(batch["image_id"], batch["text_id"])
        own = torch.arange(len(batch["image"]), device=batch["ids"].device) + dist.rank() * len(batch["image"])
        noise = gumbel(dist.draw_shared(), own, len(own) * dist.world_size())  # another process would draw the same
        false, drawn = sample_texts(~positives.texts_of_images, self.cfg.num_negatives, noise)
        image = self.model.embed_image(batch["image"])
        scores = self.scores(image, batch["ids"], batch["mask"], torch.cat([own[:, None], false], dim=1))
        loss, right = rank_loss(scores, drawn)
        log = {"loss": loss, "accuracy/rank": right, "negatives": drawn.sum(1).float().mean()}
        avoided = positives.texts_of_images.sum() - len(own)
        return TaskOutput(loss, detached(log | {"count/false_negatives_avoided": avoided}))

    def scores(self, image: Tokens, ids: Tensor, mask: Tensor, texts: Tensor) -> Tensor:
        """Return the ranks (B, C) of the ``texts`` (B, C) for each image, numbers among those of all processes.

        Of these texts ``ids`` and ``mask`` (M, T) are this process's. Every one that is used is embedded once.
        """
        different, row = texts.flatten().unique(return_inverse=True)
        text = self.model.embed_text(dist.fetch_examples(ids, different), dist.fetch_examples(mask, different))
        column = torch.arange(len(image), device=row.device).repeat_interleave(texts.shape[1])

        def fuse(images: Tensor, words: Tensor) -> tuple[Tensor]:
            return (self.match_logit(image.take(images), text.take(words)),)

        [found] = grad_cache(fuse, self.cfg.grad_cache_chunk, column, row)
        return found.view(texts.shape)

    def match_logit(self, image: Tokens, text: Tokens) -> Tensor:
        """Return the rank (B,) of each pair, higher for one that belongs together; only differences mean something."""
        nothing = torch.zeros(len(text), 0, dtype=torch.long, device=text.mask.device)
        return self.itm_head(self.model.fuse(image, text, positions=nothing).pooled).float()[:, 1]

    def rerank_score(self, cosine: Tensor, match: Tensor) -> Tensor:
        """Return the rank, which was trained without a dual encoder beside it."""
        return match

    def image_features(self, image: Tokens) -> Tensor:
        """Raise ``DualfuseError``: there are no vectors."""
        raise DualfuseError(_NO_VECTORS)

    def text_features(self, text: Tokens) -> Tensor:
        """Raise ``DualfuseError``: there are no vectors."""
        raise DualfuseError(_NO_VECTORS)


_NO_VECTORS = (
    "this model ranks pairs, and has no vectors to search with: it would fuse every image with the query. Judge it "
    "with dualfuse evaluate; to search, fine-tune with contrast (coco-bridgetower-base, coco-vlmo-base)"
)
