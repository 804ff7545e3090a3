"""Image-text pre-training: contrast, matching, and masked words (VLMo, section 3.3; BridgeTower, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dualfuse import distributed as dist
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import ITCHead, ITCHeadConfig, MLMHead, init_linear, itm_loss, normalize
from dualfuse.losses.grad_cache import Embeddings, LazyEmbedder, grad_cache, materialize
from dualfuse.losses.hard_negatives import GlobalBatch, ITMBatch, NegativeSampling, NegativeSource, sample_itm_batch
from dualfuse.losses.itc import Positives, Similarities, find_positives, gather_similarities
from dualfuse.models.base import Tokens, VisionLanguageModel
from dualfuse.tasks.base import Processor, Task, TaskOutput, detached
from dualfuse.tasks.pretrain.pair_batch import PairBatch, PairExample, collate_pairs, pad_to_global_length
from dualfuse.tasks.pretrain.pair_reading import Masking, PairReader
from dualfuse.tasks.pretrain.patch_dropout import check_patch_dropout, drop_patches


@dataclass(frozen=True)
class PairsConfig:
    """Weights and options of ITC, ITM and MLM; the defaults are those of the VLMo paper."""

    itc_weight: float = 1.0
    """Weight of image-text contrast in the loss; 0: not computed."""
    itm_weight: float = 1.0
    """Weight of image-text matching in the loss; 0: not computed."""
    mlm_weight: float = 0.25
    """Weight of masked language modeling in the loss; 0: not computed."""
    itc_features: Literal["all", "unimodal"] = "all"
    """Embeddings that ITC compares. unimodal: those of the two encoders; all: also those of the vision-language
    experts, as in the official code."""
    itc_head: ITCHeadConfig = field(default_factory=ITCHeadConfig)
    """Projections and logit scale of ITC."""
    negatives: NegativeSource = "global"
    """Candidates for ITM negatives. global: the pairs of all processes; local: those of the own process (VLMo, Table 6;
    BridgeTower); source: those of all processes that come from the same data set."""
    negative_hardness: float = 1.0
    """Exponent of the ITC softmax that ITM negatives are drawn from: 1, as published; 0: uniform."""
    negatives_per_pair: Literal[0, 1, 2] = 2
    """ITM negatives. 2: a negative image and a negative text for every pair; 1: a negative image for one half of the
    pairs, a negative text for the other; 0: one half of the pairs is replaced by pairs with a negative image (METER,
    BridgeTower)."""
    itm_on_masked_text: bool = False
    """Whether ITM reads the masked texts, so that positive pairs share the forward pass of MLM (not in the paper)."""
    patch_dropout: float = 0.0
    """Fraction of the patches, 0 to below 1, that ITC drops at random in training; fusion reads all patches. Needs
    absolute positions (not in the paper)."""
    grad_cache_chunk: int = 0
    """Examples per forward pass with gradient caching: ITC and hard negatives still use the whole batch, with less
    memory and about a third more compute. 0: the whole batch in one pass."""
    gather_with_grad: bool = True
    """Whether the gradient of gathered ITC embeddings flows back to the process that computed them. False, as in the
    official code: it does not, so that with W processes ITC has the weight 1 / W in the encoders."""
    masking: Masking = "whole_word"
    """Unit of MLM masking. whole_word: words; token: single tokens, as RoBERTa; official: as VLMo's code, where padding
    is a candidate, too. With token and official a caption can end up without a masked token."""
    mlm_probability: float = 0.15
    """Fraction of the words or tokens that is masked."""
    tags: str = ""
    """Key of a list in the samples' JSON, such as keywords: a third of the captions is extended by some of its entries,
    and a sixth is replaced by them. Empty: captions are used as they are."""
    init_std: float = 0.02
    """Standard deviation of the initial weights of the heads."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained together."""
        needs_all = self.itm_on_masked_text or (self.itc_head.fused and self.itc_weight > 0)
        if self.itm_weight and self.negatives_per_pair == 0 and needs_all:
            raise DualfuseError(
                "with negatives_per_pair=0 only half of the right pairs are fused, but itm_on_masked_text and "
                "projection.fused need all; set negatives_per_pair to 1 or 2"
            )

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> PairExample:
        """Draw one of the captions, masks words, and transforms the image."""
        return PairReader(self.masking, self.mlm_probability, self.tags).read(sample, processor, rng)

    def collate(self, rows: Sequence[PairExample]) -> PairBatch:
        """Pad the texts to the longest of them."""
        return collate_pairs(rows)

    def build(self, model: VisionLanguageModel) -> Pairs:
        """Return the task with fresh heads."""
        return Pairs(self, model)


class Pairs(Task):
    """Contrast, matching and masked words on one batch of pairs."""

    def __init__(self, cfg: PairsConfig, model: VisionLanguageModel) -> None:
        """Heads: one pair of projections per view, match / no match, and the word head."""
        super().__init__()
        check_patch_dropout(cfg.patch_dropout, model)
        self.cfg, self.model = cfg, model
        self.itc_heads = nn.ModuleList(
            ITCHead(cfg.itc_head, model.width, fused_width=model.fused_width, std=cfg.init_std)
            for _ in range(model.num_itc_features if cfg.itc_features == "all" else 1)
        )
        self.itm_head = nn.Linear(model.fused_width, 2)
        self.mlm_head = MLMHead(model.text_width, model.vocab_size, epsilon=model.mlm_head_eps, std=cfg.init_std)
        init_linear(self.itm_head, cfg.init_std)

    @property
    def feature_heads(self) -> tuple[ITCHead, ...]:
        """The projections of each view, the plain one first."""
        return tuple(view for view in self.itc_heads if isinstance(view, ITCHead))

    def forward(self, batch: PairBatch) -> TaskOutput:
        """Embed once, contrasts, draws negatives by similarity, fuses all combinations in one pass, and adds up."""
        batch = pad_to_global_length(batch)
        reads_whole = self.needs_similarity or (self.cfg.itm_weight > 0 and not self.cfg.itm_on_masked_text)
        image = self.embedder.embed_image(batch["image"])
        text = self.embedder.embed_text(batch["ids" if reads_whole else "masked_ids"], batch["mask"])

        positives = find_positives(batch["image_id"], batch["text_id"])
        embeddings, similar, contrast = self.itc(image, text, positives)
        log = {"loss/itc": contrast, "count/false_negatives_avoided": positives.avoided}
        if not (self.cfg.itm_weight or self.cfg.mlm_weight or self.needs_fused_features):
            loss = self.cfg.itc_weight * contrast
            return TaskOutput(loss, detached({"loss": loss} | log))

        needs_masked = reads_whole and (self.cfg.mlm_weight or self.cfg.itm_on_masked_text)
        masked = self.embedder.embed_text(batch["masked_ids"], batch["mask"]) if needs_masked else text
        passes = [(masked, image)] if self.cfg.mlm_weight else []
        chosen = ITMBatch()
        if self.cfg.itm_weight or self.needs_fused_features:
            seen = masked if self.cfg.itm_on_masked_text else text
            chosen = self.itm_batch(batch, image, seen, similar, positives)
            passes += [] if passes and seen is masked else [chosen.positives]
        rows = batch["positions"] if self.cfg.mlm_weight else batch["positions"][:, :0]
        pooled, states = self.fuse([*passes, *chosen.negatives], rows)
        pooled = pooled[len(pooled) - len(chosen) :]

        if self.needs_fused_features:
            contrast = self.itc_with_fused(embeddings[0], pooled[: len(image)], similar, positives)
            log |= {"loss/itc": contrast}
        loss = self.cfg.itc_weight * contrast
        if self.cfg.mlm_weight:
            words, accuracy = self.mlm_head.loss(states[: len(image)], batch["targets"], self.cfg.grad_cache_chunk)
            loss = loss + self.cfg.mlm_weight * words
            log |= {"loss/mlm": words, "accuracy/mlm": accuracy}
        if self.cfg.itm_weight:
            match, accuracies = self.itm(pooled, chosen.drawn)
            loss = loss + self.cfg.itm_weight * match
            log |= {"loss/itm": match} | accuracies
        return TaskOutput(loss, detached({"loss": loss} | log))

    @property
    def embedder(self) -> VisionLanguageModel | LazyEmbedder:
        """What embeds: at once, or a few rows at a time where they are used."""
        return LazyEmbedder(self.model) if self.cfg.grad_cache_chunk else self.model

    @property
    def needs_similarity(self) -> bool:
        """Whether the loss depends on how alike images and texts are alone: by contrast, or by the negatives."""
        return self.cfg.itc_weight > 0 or (self.cfg.itm_weight > 0 and self.cfg.negative_hardness > 0)

    @property
    def needs_fused_features(self) -> bool:
        """Whether contrast also compares with fused vectors."""
        return self.cfg.itc_weight > 0 and self.cfg.itc_head.fused

    def itc(
        self, image: Embeddings, text: Embeddings, positives: Positives
    ) -> tuple[list[tuple[Tensor, Tensor]], Similarities, Tensor]:
        """Return unit vectors of every view, the plain one's similarities, and the contrastive loss of all views."""
        if not self.needs_similarity:
            own, all_ = (torch.zeros(rows, 1, device=image.device) for rows in (len(image), len(positives.images)))
            return [], Similarities(own, own, all_, all_, own.sum()), own.sum()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.cfg.itc_weight > 0):
            embeddings = self.embeddings(image, text)
            similar = self.similarities(embeddings)
            losses = [view.loss(positives, self.cfg.grad_cache_chunk) for view in similar]
            return embeddings, similar[0], torch.stack(losses).mean()

    def embeddings(self, image: Embeddings, text: Embeddings) -> list[tuple[Tensor, Tensor]]:
        """Return unit vectors of images and texts, both (B, D), in every view, the plain one first."""
        of_image, of_text = (
            self._itc_features_of_images(image),
            grad_cache(self._itc_features, self.cfg.grad_cache_chunk, text),
        )
        return [
            (normalize(head.image(one)), normalize(head.text(other)))
            for head, one, other in zip(self.feature_heads, of_image, of_text, strict=True)
        ]

    def similarities(self, embeddings: Sequence[tuple[Tensor, Tensor]]) -> list[Similarities]:
        """Compare this process's images and texts with those of all, in every view."""
        share = 1.0 if self.cfg.gather_with_grad else 1 / dist.world_size()
        return [
            gather_similarities(*pair, head.scale, share)
            for head, pair in zip(self.feature_heads, embeddings, strict=True)
        ]

    def itc_with_fused(
        self, embeddings: tuple[Tensor, Tensor], pooled: Tensor, similar: Similarities, positives: Positives
    ) -> Tensor:
        """Return the contrastive loss that also compares with the fused vectors (B, F) of all right pairs."""
        head, (image, text) = self.feature_heads[0], embeddings
        assert head.fused is not None  # by contrasts_pairs
        pairs = dist.all_gather(normalize(head.fused(pooled)))
        return similar.loss_with_fused(head.scale * text @ pairs.T, head.scale * image @ pairs.T, positives)

    def _itc_features(self, rows: Embeddings) -> tuple[Tensor, ...]:
        tokens = materialize(rows)
        return self.model.itc_features(tokens) if self.cfg.itc_features == "all" else (self.model.encode(tokens),)

    def _itc_features_of_images(self, image: Embeddings) -> tuple[Tensor, ...]:
        dropout, chunk = self.cfg.patch_dropout, self.cfg.grad_cache_chunk
        if not dropout or not self.training:
            return grad_cache(self._itc_features, chunk, image)
        numbers = dist.rank() * len(image) + torch.arange(len(image), device=image.device)
        key = dist.draw_shared()
        return grad_cache(
            lambda rows, some: self._itc_features(drop_patches(materialize(rows), some, dropout, key)),
            chunk,
            image,
            numbers,
        )

    def itm_batch(
        self, batch: PairBatch, image: Embeddings, seen: Embeddings, similar: Similarities, positives: Positives
    ) -> ITMBatch:
        """Return the pairs that matching tells apart; ``seen`` are the texts it sees."""
        if not self.cfg.itm_weight:
            return ITMBatch(((seen, image),))
        ids = "masked_ids" if self.cfg.itm_on_masked_text else "ids"
        everyone = GlobalBatch(self.embedder, batch, image, seen, ids, self.cfg.negatives)
        how = NegativeSampling(self.cfg.negatives_per_pair, self.cfg.negative_hardness, self.cfg.grad_cache_chunk)
        return sample_itm_batch(everyone, similar, positives, how)

    def fuse(self, passes: Sequence[tuple[Embeddings, Embeddings]], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse (text, image) batches; gives pooled vectors, and the states at ``positions`` (B, R) of the first."""
        if not self.cfg.grad_cache_chunk:  # one batch: fewer and bigger matrix products
            text, image = (Tokens.join([materialize(pair[side]) for pair in passes]) for side in (0, 1))
            nothing = rows.new_zeros(len(text) - len(rows), rows.shape[1])
            return self._fuse(text, image, torch.cat([rows, nothing]))
        wanted = [rows, *(rows.new_zeros(len(text), 0) for text, _ in passes[1:])]
        parts = [
            grad_cache(self._fuse, self.cfg.grad_cache_chunk, text, image, some)
            for (text, image), some in zip(passes, wanted, strict=True)
        ]
        return torch.cat([pooled for pooled, _ in parts]), parts[0][1]

    def _fuse(self, text: Embeddings, image: Embeddings, rows: Tensor) -> tuple[Tensor, Tensor]:
        words = materialize(text)
        fused = self.model.fuse(materialize(image), words, positions=rows)
        needs_pooled = self.cfg.itm_weight or self.needs_fused_features
        return fused.pooled if needs_pooled else fused.text.new_empty(len(words), 0), fused.text

    def itm(self, pooled: Tensor, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over right pairs and the wrong ones that could be ``drawn``, and both accuracies."""
        return itm_loss(self.itm_head(pooled).float(), drawn)

    def image_features(self, image: Tokens) -> Tensor:
        """Return unit vectors (B, D) that :meth:`text_features` can be compared with."""
        self._check_search()
        return normalize(self.feature_heads[0].image(self.model.encode(image)))

    def text_features(self, text: Tokens) -> Tensor:
        """Return unit vectors (B, D) that :meth:`image_features` can be compared with."""
        self._check_search()
        return normalize(self.feature_heads[0].text(self.model.encode(text)))

    @property
    def can_search(self) -> bool:
        """Whether contrast was trained."""
        return self.cfg.itc_weight > 0

    def _check_search(self) -> None:
        if not self.can_search:
            raise DualfuseError(
                "this model was trained without contrast and has no vectors to search with; fine-tune it with contrast"
            )

    @property
    def can_match(self) -> bool:
        """Whether matching was trained."""
        return self.cfg.itm_weight > 0

    def match_logit(self, image: Tokens, text: Tokens) -> Tensor:
        """Return the log-odds (B,) that image and text belong together; ``DualfuseError`` if that was not trained."""
        if not self.can_match:
            raise DualfuseError("this model was trained without matching, so it cannot re-rank: leave out rerank")
        nothing = torch.zeros(len(text), 0, dtype=torch.long, device=text.mask.device)
        logits = self.itm_head(self.model.fuse(image, text, positions=nothing).pooled).float()
        return logits[:, 1] - logits[:, 0]

    def rerank_score(self, cosine: Tensor, match: Tensor) -> Tensor:
        """Add up the contrastive logit and the matching log-odds.

        Against negatives drawn by similarity (hardness 1) matching learns log p(match) - log q(contrast), so that the
        sum is log p(match). Against random ones (0) both are estimates of the same, and the sum is their mean.
        """
        return self.feature_heads[0].scale * cosine + match
