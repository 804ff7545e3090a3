"""What the towers of Transformer layers share: the loop over layers, their levels, and the text embeddings of BERT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention_flow import AttentionFlow
from dualfuse.layers.embeddings import TextPositions
from dualfuse.layers.post_norm import TextLayer
from dualfuse.layers.pre_norm import PreNormBlock
from dualfuse.models.base import MAX_DEPTH
from dualfuse.models.towers.base import Tower


class PreNormTower(Tower):
    """Pre-norm ``blocks`` and a final LayerNorm ``norm_after``; modules that are added after these pool the top state.

    Linear layers keep PyTorch's default until the model initializes them.
    """

    def add_blocks(self, cfg: Any) -> None:  # Any: a config with the sizes of blocks
        """Add the blocks and the final LayerNorm."""
        options = block_options(cfg)
        self.blocks = nn.ModuleList(PreNormBlock(cfg.width, **options) for _ in range(cfg.depth))
        self.norm_after = nn.LayerNorm(cfg.width, eps=cfg.layer_norm_eps)

    def run(self, x: Tensor, layers: Sequence[int], mask: Tensor | None = None) -> list[Tensor]:
        """Return the normalized states (B, N, width) after ``layers`` of embeddings x (B, N, width).

        The final LayerNorm is applied to each returned state; the next block reads the state before it.
        """
        return run_layers(self.blocks, x, mask, layers, self.norm_after)

    def fsdp_blocks(self) -> Sequence[nn.Module]:
        """Return the blocks."""
        return list(self.blocks)

    def lr_layers(self) -> list[tuple[nn.Module, ...]]:
        """Return the levels of every tower, with the modules after the blocks at the level of the top block."""
        *lower, top = super().lr_layers()
        modules = list(self.children())
        return [*lower, (*top, *modules[modules.index(self.blocks) + 1 :])]

    def attention_flow(self, flow: AttentionFlow, x: Tensor) -> list[Tensor]:
        """Return the relevance (N, M) after each block."""
        return flow.stack(self.blocks, x)


class PostNormTower(Tower):
    """BERT without its pooler: embeddings ``words``, then post-norm ``layers``."""

    def __init__(self, cfg: Any, words: BertEmbeddings, *, epsilon: float, dropout: float) -> None:  # Any: its sizes
        """``dropout`` is that of attention weights and branches, ``epsilon`` that of LayerNorms."""
        super().__init__()
        self.words = words
        self.layers = nn.ModuleList(
            TextLayer(cfg.width, heads=cfg.heads, feed_forward=cfg.feed_forward, epsilon=epsilon, dropout=dropout)
            for _ in range(cfg.depth)
        )

    def run(self, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Return the states (B, T, width) after ``layers`` of ids (B, T); ``mask`` (B, T) is True at tokens."""
        return run_layers(self.layers, self.words(ids), mask, layers)

    def fsdp_blocks(self) -> Sequence[nn.Module]:
        """Return the layers."""
        return list(self.layers)

    def attention_flow(self, flow: AttentionFlow, x: Tensor) -> list[Tensor]:
        """Return the relevance (N, M) after each layer."""
        return flow.stack(self.layers, x)


class BertEmbeddings(TextPositions):
    """LayerNorm(word + position + type row 0), then dropout; positions count from 0."""

    def __init__(self, cfg: Any, *, unused: int = 0, epsilon: float, dropout: float) -> None:  # Any: sizes of a text
        """The first ``unused`` positions stand for no token; the type of a second sentence is not stored."""
        super().__init__(cfg.width, vocabulary=cfg.vocab_size, text_length=cfg.text_length, unused=unused)
        self.token_type = nn.Embedding(1, cfg.width)
        self.norm = nn.LayerNorm(cfg.width, eps=epsilon)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (B, T) as (B, T, width)."""
        return self.dropout(self.norm(super().forward(ids) + self.token_type.weight[0]))


def run_layers(
    stack: nn.ModuleList, x: Tensor, mask: Tensor | None, layers: Sequence[int], norm: nn.Module | None = None
) -> list[Tensor]:
    """Return the states after ``layers`` of ``stack``, through ``norm``; layers above the highest are not run."""
    states: dict[int, Tensor] = {}
    for number, layer in enumerate(stack[: 1 + max(layers)]):
        x = layer(x, mask)
        if number in layers:
            states[number] = x if norm is None else norm(x)
    return [states[number] for number in layers]


def block_options(cfg: Any) -> dict[str, Any]:  # Any: a config with these fields
    """Return the arguments of a pre-norm block, and of attention pooling, besides the width."""
    return {
        "heads": cfg.heads,
        "feed_forward": cfg.feed_forward,
        "activation": cfg.activation,
        "epsilon": cfg.layer_norm_eps,
    }


def check_sizes(width: int, heads: int, depth: int) -> None:
    """Raise DualfuseError unless ``heads`` divide ``width`` and ``depth`` is a possible number of layers."""
    if heads < 1 or width % heads or not 1 <= depth <= MAX_DEPTH:
        raise DualfuseError(
            f"width is {width} with {heads} heads, depth {depth}; give a multiple of the heads, and 1 to {MAX_DEPTH}"
        )
