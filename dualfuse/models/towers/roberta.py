"""RoBERTa (arXiv 1907.11692), the text tower of BridgeTower and METER."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dualfuse.models.towers.base import TextTowerConfig, TowerOutput
from dualfuse.models.towers.transformer import BertEmbeddings, PostNormTower, check_sizes

EPSILON = 1e-5  # of LayerNorms


@dataclass(frozen=True)
class RobertaConfig(TextTowerConfig):
    """The sizes of a RoBERTa; the defaults are its base size."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    feed_forward: int = 3072
    vocab_size: int = 50_265
    text_length: int = 512
    """Longest text that has positions, in tokens."""
    pad_id: int = 1
    """Id of the padding token; positions number the other tokens from ``pad_id`` + 1."""

    def __post_init__(self) -> None:
        """Validate the sizes."""
        check_sizes(self.width, self.heads, self.depth)

    def build(self, dropout: float) -> Roberta:
        """Return the tower with initial weights; ``dropout`` is that of embeddings, attention weights and branches."""
        return Roberta(self, dropout=dropout)


class Roberta(PostNormTower):
    """RoBERTa without its pooler, which BridgeTower does not use."""

    def __init__(self, cfg: RobertaConfig, *, dropout: float) -> None:
        """``dropout`` is that of embeddings, attention weights and branches."""
        super().__init__(cfg, RobertaEmbeddings(cfg, dropout=dropout), epsilon=EPSILON, dropout=dropout)

    def forward(self, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> TowerOutput:
        """Return the states (B, T, width) after ``layers`` of ids (B, T); ``mask`` (B, T) is True at tokens."""
        return TowerOutput(tuple(self.run(ids, mask, layers)))


class RobertaEmbeddings(BertEmbeddings):
    """BERT's embeddings, whose positions number the tokens that are not padding."""

    def __init__(self, cfg: RobertaConfig, *, dropout: float) -> None:
        """The position table has the rows of published weights, of which the first ``pad_id`` + 1 are unused."""
        super().__init__(cfg, unused=cfg.pad_id + 1, epsilon=EPSILON, dropout=dropout)
        self.pad = cfg.pad_id

    def positions(self, ids: Tensor) -> Tensor:
        """Return the positions (B, T, width) of ids (B, T)."""
        is_token = (ids != self.pad).long()
        return self.position(self.pad + is_token.cumsum(1) * is_token)
