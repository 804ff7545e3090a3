"""BERT (arXiv 1810.04805) and encoders in its layout, such as MiniLM (arXiv 2002.10957): a text tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dualfuse.models.towers.base import TextTowerConfig, TowerOutput
from dualfuse.models.towers.transformer import BertEmbeddings, PostNormTower, check_sizes

EPSILON = 1e-12  # of LayerNorms


@dataclass(frozen=True)
class BertConfig(TextTowerConfig):
    """The sizes of a BERT; the defaults are its base size."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    feed_forward: int = 3072
    vocab_size: int = 30_522
    text_length: int = 512
    """Longest text that has positions, in tokens."""
    pooling: Literal["mean", "first"] = "mean"
    """Pooled state: the mean over tokens (sentence-transformers), or the state of the first token, [CLS]."""

    def __post_init__(self) -> None:
        """Validate the sizes."""
        check_sizes(self.width, self.heads, self.depth)

    def build(self, dropout: float) -> Bert:
        """Return the tower with initial weights; ``dropout`` is that of embeddings, attention weights and branches."""
        return Bert(self, dropout=dropout)


class Bert(PostNormTower):
    """BERT without its pooler, which only next-sentence prediction uses."""

    def __init__(self, cfg: BertConfig, *, dropout: float) -> None:
        """``dropout`` is that of embeddings, attention weights and branches."""
        super().__init__(cfg, BertEmbeddings(cfg, epsilon=EPSILON, dropout=dropout), epsilon=EPSILON, dropout=dropout)
        self.pooling = cfg.pooling

    def forward(self, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> TowerOutput:
        """Return the states (B, T, width) after ``layers`` of ids (B, T); ``mask`` (B, T) is True at tokens."""
        states = self.run(ids, mask, layers)
        return TowerOutput(tuple(states), pooled=mean_over_tokens(states[-1], mask) if self.pooling == "mean" else None)


def mean_over_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, D) of the states (B, T, D) of the tokens, where ``mask`` (B, T) is True."""
    weights = mask.to(states.dtype)
    return torch.einsum("bt,btd->bd", weights, states) / weights.sum(1, keepdim=True).clamp(min=1)
