"""BERT (arXiv 1810.04805) and encoders in its layout, such as MiniLM (arXiv 2002.10957): a text tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention_flow import AttentionFlow
from dualfuse.layers.post_norm import TextLayer
from dualfuse.layers.resizing import Resizable, cut_positions
from dualfuse.models.base import MAX_DEPTH
from dualfuse.models.towers.base import TextTowerConfig, Tower, TowerOutput

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
        if not 1 <= self.depth <= MAX_DEPTH or self.width % self.heads:
            raise DualfuseError(
                f"depth is {self.depth}, width {self.width}, heads {self.heads}; give a depth of 1 to {MAX_DEPTH} and "
                "a width that is a multiple of heads"
            )

    def build(self, dropout: float) -> Bert:
        """Return the tower with initial weights; ``dropout`` is that of embeddings, attention weights and branches."""
        return Bert(self, dropout=dropout)


class Bert(Tower):
    """BERT without its pooler, which only next-sentence prediction uses."""

    def __init__(self, cfg: BertConfig, *, dropout: float) -> None:
        """``dropout`` is that of embeddings, attention weights and branches."""
        super().__init__()
        self.pooling = cfg.pooling
        self.words = BertEmbeddings(cfg, dropout=dropout)
        self.layers = nn.ModuleList(
            TextLayer(cfg.width, heads=cfg.heads, feed_forward=cfg.feed_forward, epsilon=EPSILON, dropout=dropout)
            for _ in range(cfg.depth)
        )

    def forward(self, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> TowerOutput:
        """Return the states (B, T, width) after ``layers`` of ids (B, T); ``mask`` (B, T) is True at tokens."""
        x, states = self.words(ids), dict[int, Tensor]()
        for number, layer in enumerate(self.layers[: 1 + max(layers)]):
            x = layer(x, mask)
            if number in layers:
                states[number] = x
        pooled = mean_over_tokens(states[layers[-1]], mask) if self.pooling == "mean" else None
        return TowerOutput(tuple(states[number] for number in layers), pooled=pooled)

    def fsdp_blocks(self) -> Sequence[nn.Module]:
        """Return the layers."""
        return list(self.layers)

    def attention_flow(self, flow: AttentionFlow, x: Tensor) -> list[Tensor]:
        """Return the relevance (N, M) after each layer."""
        return flow.stack(self.layers, x)


def mean_over_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, D) of the states (B, T, D) of the tokens, where ``mask`` (B, T) is True."""
    weights = mask.to(states.dtype)
    return torch.einsum("bt,btd->bd", weights, states) / weights.sum(1, keepdim=True).clamp(min=1)


class BertEmbeddings(Resizable):
    """LayerNorm(word + position + type row 0), then dropout; positions count from 0."""

    embeds_text = True

    def __init__(self, cfg: BertConfig, *, dropout: float) -> None:
        """The type of a second sentence is unused, so that its row is not stored."""
        super().__init__()
        self.word = nn.Embedding(cfg.vocab_size, cfg.width)
        self.position = nn.Embedding(cfg.text_length, cfg.width)
        self.token_type = nn.Embedding(1, cfg.width)
        self.norm = nn.LayerNorm(cfg.width, eps=EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (B, T) as (B, T, width)."""
        length = ids.shape[1]
        if length > self.position.num_embeddings:
            raise DualfuseError(
                f"a text of {length} tokens is longer than the {self.position.num_embeddings} positions of the model; "
                "cut it or set text_length of the model higher"
            )
        return self.dropout(self.norm(self.word(ids) + self.position.weight[:length] + self.token_type.weight[0]))

    def resize_tensor(
        self, name: str, tensor: Tensor, source: BertEmbeddings, *, has_text: bool
    ) -> tuple[Tensor, str] | None:
        """Drop the positions beyond those of this module."""
        return cut_positions(name, tensor, self.position, unused=0)
