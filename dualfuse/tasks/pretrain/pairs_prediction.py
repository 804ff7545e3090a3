"""What a model trained on pairs does for its users: search, re-ranking, and predictions for an image and a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import ITCHead, MLMHead, normalize
from dualfuse.layers.late_interaction import LateInteractionHead
from dualfuse.models.base import Fused, Tokens, check_fusion
from dualfuse.tasks.base import Task
from dualfuse.tasks.prediction import Prediction, check_images, text_of
from dualfuse.tasks.pretrain.fill_mask import MaskedQuery, collate_queries, fill_masks, has_masks, read_masked
from dualfuse.tasks.pretrain.late_scores import features

if TYPE_CHECKING:
    from dualfuse.tasks.pretrain.pairs import PairsConfig


INITIAL_THRESHOLD = 0.2
"""Cosine between those of positive and of negative pairs of most dual encoders."""


@dataclass(frozen=True, eq=False)
class PairInput:
    """One image (3, H, W), and a text that may have masks."""

    image: Tensor
    text: MaskedQuery


class PairPrediction(Task):
    """A task whose model was trained with ITC, ITM and MLM, or some of them."""

    cfg: PairsConfig
    itc_heads: nn.ModuleList
    itm_head: nn.Linear
    mlm_head: MLMHead
    late_head: LateInteractionHead | None
    match_threshold: nn.Parameter | None
    """The cosine (1,) from which a pair of an ITM head that was trained list-wise matches; None: trained pair-wise."""

    def start_listwise(self) -> None:
        """Add the threshold of list-wise matching, and let its head start at zero: ranking starts as ITC ranks."""
        self.match_threshold = None
        if self.cfg.itm_loss == "listwise" and self.model.capabilities.fusion:
            self.match_threshold = nn.Parameter(torch.full((1,), INITIAL_THRESHOLD))
            nn.init.zeros_(self.itm_head.weight)
            nn.init.zeros_(self.itm_head.bias)

    @property
    def feature_heads(self) -> tuple[ITCHead, ...]:
        """The ITC heads; the first one projects the unimodal features."""
        return tuple(head for head in self.itc_heads if isinstance(head, ITCHead))

    @property
    def can_search(self) -> bool:
        """Whether the task trains ITC."""
        return self.cfg.itc_weight > 0

    def image_features(self, image: Tokens) -> Tensor:
        """Return normalized embeddings (B, D), comparable with those of :meth:`text_features`."""
        return self._search_features(self.feature_heads[0].image, image)

    def text_features(self, text: Tokens) -> Tensor:
        """Return normalized embeddings (B, D), comparable with those of :meth:`image_features`."""
        return self._search_features(self.feature_heads[0].text, text)

    def _search_features(self, projection: nn.Module, tokens: Tokens) -> Tensor:
        self.check_search()
        return normalize(projection(self.model.encode(tokens)))

    @property
    def can_match(self) -> bool:
        """Whether the task trains ITM."""
        return self.cfg.itm_weight > 0

    def match_logit(self, image: Tokens, text: Tokens) -> Tensor:
        """Return the log-odds (B,) that image and text match. Raises ``DualfuseError`` if ITM was not trained."""
        if not self.can_match:
            check_fusion(self.model)
            raise DualfuseError("this model was trained without ITM, so it cannot re-rank; omit rerank")
        no_positions = torch.zeros(len(text), 0, dtype=torch.long, device=text.mask.device)
        logits = self.itm_head(self.model.fuse(image, text, positions=no_positions).pooled).float()
        log_odds = logits[:, 1] - logits[:, 0]
        if self.match_threshold is None:
            return log_odds
        cosine = (self.image_features(image) * self.text_features(text)).sum(1).float()
        return self.feature_heads[0].scale * (cosine - self.match_threshold) + self.late_logit(image, text) + log_odds

    def late_logit(self, image: Tokens, text: Tokens) -> Tensor:
        """Return the logit (B,) of late interaction between words and patches; 0 if there is none."""
        if (head := self.late_head) is None:
            return torch.zeros(len(image), device=image.device)
        words, patches = (features(head, self.model, each) for each in (text, image))
        return head.scale * head.pairs(words, patches).float()

    def cosine_logit(self, cosine: Tensor) -> Tensor:
        """Return the cosine times the learned scale."""
        return self.feature_heads[0].scale * cosine

    def fused_score(self, cosine: Tensor, match: Tensor) -> Tensor:
        """Return the ITM log-odds; a match logit that was trained list-wise contains the ITC logit, too."""
        return match if self.match_threshold is None else match - self.cosine_logit(cosine)

    def rerank_score(self, cosine: Tensor, match: Tensor) -> Tensor:
        """Return the sum of the ITC logit and the ITM log-odds.

        With negatives drawn by similarity (hardness 1), ITM learns log p(match) - log q(ITC), so the sum is
        log p(match). With random negatives (0) both estimate the same quantity, and the sum is twice their mean.
        A head that was trained list-wise is trained for the sum, which its match logit is, up to a constant.
        """
        if self.match_threshold is not None:
            return match
        return self.feature_heads[0].scale * cosine + match

    def explained_logit(self, fused: Sequence[Fused]) -> tuple[str, Tensor]:
        """Return the ITM probability as text, and the ITM log-odds."""
        if not self.can_match:
            check_fusion(self.model)
            return super().explained_logit(fused)
        negative, positive = self.itm_head(fused[0].pooled)[0]
        if self.match_threshold is not None:
            return f"log-odds added to the dual encoder's {positive - negative:+.2f}", positive - negative
        return f"match {100 * torch.sigmoid(positive - negative).item():.1f} %", positive - negative

    def read_input(self, sample: Sample, processor: Processor) -> PairInput:
        """Read one image and one text, which may have masks. Raises DualfuseError if no trained head predicts them."""
        check_images(sample)
        if not self.cfg.mlm_weight and has_masks(text_of(sample)):
            check_fusion(self.model)
            raise DualfuseError("this model was trained without MLM; give a text without a mask")
        text = read_masked(text_of(sample), processor.text)
        if not (len(text.positions) or self.can_match or self.can_search):
            raise DualfuseError("this model only fills masks; put [MASK] in place of a word")
        return PairInput(processor.image(sample.image, np.random.default_rng(0)), text)

    def predict(self, inputs: Sequence[PairInput], processor: Processor, top: int) -> list[Prediction]:
        """Return match and cosine, or the ``top`` tokens of every mask of texts with masks, in one batch each."""
        has_mask = [len(each.text.positions) > 0 for each in inputs]
        masked = iter(self._fill([each for each, has in zip(inputs, has_mask, strict=True) if has], processor, top))
        compared = iter(self._compare([each for each, has in zip(inputs, has_mask, strict=True) if not has]))
        return [next(masked if has else compared) for has in has_mask]

    def _fill(self, inputs: Sequence[PairInput], processor: Processor, top: int) -> list[Prediction]:
        if not inputs:
            return []
        image, text, positions = self._embed(inputs)
        logits = self.mlm_head(self.model.fuse(image, text, positions=positions).text)
        return fill_masks([each.text for each in inputs], logits, processor.text, top)

    def _compare(self, inputs: Sequence[PairInput]) -> list[Prediction]:
        if not inputs:
            return []
        image, text, _ = self._embed(inputs)
        matches, cosines = [None] * len(inputs), [None] * len(inputs)
        match = self.match_logit(image, text) if self.can_match else None
        cosine = torch.zeros(len(inputs), device=self.device)
        if self.can_search:
            cosine = (self.image_features(image) * self.text_features(text)).sum(1)
            cosines = cosine.tolist()
        probability = self.pair_probability(cosine, match)
        if probability is not None:
            matches = probability.tolist()
        return [
            Prediction(match=match, cosine=cosine, is_cut=each.text.is_cut)
            for each, match, cosine in zip(inputs, matches, cosines, strict=True)
        ]

    def _embed(self, inputs: Sequence[PairInput]) -> tuple[Tokens, Tokens, Tensor]:
        """Return embedded images and texts, and the positions (B, R) of masks."""
        ids, mask, positions = collate_queries([each.text for each in inputs], self.device)
        images = torch.stack([each.image for each in inputs]).to(self.device)
        return self.model.embed_image(images), self.model.embed_text(ids, mask), positions
