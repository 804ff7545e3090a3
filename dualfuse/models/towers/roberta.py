"""RoBERTa (arXiv 1907.11692), the text tower of BridgeTower and METER."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention_flow import AttentionFlow
from dualfuse.layers.post_norm import TextLayer
from dualfuse.layers.resizing import Resizable, cut_positions, extend_positions
from dualfuse.models.base import MAX_DEPTH
from dualfuse.models.towers.base import TextTowerConfig, Tower, TowerOutput


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
        if not 1 <= self.depth <= MAX_DEPTH:
            raise DualfuseError(f"depth is {self.depth}; give 1 to {MAX_DEPTH}")

    def build(self, dropout: float) -> Roberta:
        """Return the tower with initial weights; ``dropout`` is that of embeddings, attention weights and branches."""
        return Roberta(self, dropout=dropout)


class Roberta(Tower):
    """RoBERTa without its pooler, which BridgeTower does not use."""

    def __init__(self, cfg: RobertaConfig, *, dropout: float) -> None:
        """``dropout`` is that of embeddings, attention weights and branches."""
        super().__init__()
        self.words = RobertaEmbeddings(cfg, dropout=dropout)
        self.layers = nn.ModuleList(
            TextLayer(cfg.width, heads=cfg.heads, feed_forward=cfg.feed_forward, epsilon=1e-5, dropout=dropout)
            for _ in range(cfg.depth)
        )

    def forward(self, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> TowerOutput:
        """Return the states (B, T, width) after ``layers`` of ids (B, T); ``mask`` (B, T) is True at tokens."""
        x, states = self.words(ids), dict[int, Tensor]()
        for number, layer in enumerate(self.layers[: 1 + max(layers)]):
            x = layer(x, mask)
            if number in layers:
                states[number] = x
        return TowerOutput(tuple(states[number] for number in layers))

    def fsdp_blocks(self) -> Sequence[nn.Module]:
        """Return the layers."""
        return list(self.layers)

    def attention_flow(self, flow: AttentionFlow, x: Tensor) -> list[Tensor]:
        """Return the relevance (N, M) after each layer."""
        return flow.stack(self.layers, x)


class RobertaEmbeddings(Resizable):
    """LayerNorm(word + position + type row 0), then dropout; positions number the tokens that are not padding."""

    embeds_text = True

    def __init__(self, cfg: RobertaConfig, *, dropout: float) -> None:
        """The position table has the rows of published weights, of which the first ``pad_id`` + 1 are unused."""
        super().__init__()
        self.pad, self.text_length = cfg.pad_id, cfg.text_length
        self.word = nn.Embedding(cfg.vocab_size, cfg.width)
        self.position = nn.Embedding(cfg.text_length + cfg.pad_id + 1, cfg.width)
        self.token_type = nn.Embedding(1, cfg.width)
        self.norm = nn.LayerNorm(cfg.width, eps=1e-5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (B, T) as (B, T, width)."""
        if ids.shape[1] > self.text_length:
            raise DualfuseError(
                f"a text of {ids.shape[1]} tokens is longer than the {self.text_length} positions of the model; "
                "cut it or set text_length of the model higher"
            )
        is_token = (ids != self.pad).long()
        positions = self.pad + is_token.cumsum(1) * is_token
        return self.dropout(self.norm(self.word(ids) + self.position(positions) + self.token_type.weight[0]))

    def resize_tensor(
        self, name: str, tensor: Tensor, source: RobertaEmbeddings, *, has_text: bool
    ) -> tuple[Tensor, str] | None:
        """Drop the positions beyond those of this module."""
        return cut_positions(name, tensor, self.position, unused=self.pad + 1)

    def extend_tensor(self, name: str, tensor: Tensor, source: RobertaEmbeddings) -> Tensor | None:
        """Add the positions that this module has beyond those of ``source``."""
        return extend_positions(tensor, self.position, self.pad + 1) if name.startswith("position.") else None
