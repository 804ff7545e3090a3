"""CLIP's text encoder (arXiv 2103.00020): a causal Transformer, pooled at the end-of-text token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention_flow import AttentionFlow
from dualfuse.layers.pre_norm import Activation, PreNormBlock
from dualfuse.layers.resizing import Resizable, cut_positions, extend_positions
from dualfuse.models.base import MAX_DEPTH
from dualfuse.models.towers.base import TextTowerConfig, Tower, TowerOutput


@dataclass(frozen=True)
class CLIPTextConfig(TextTowerConfig):
    """The sizes of a CLIP text encoder; the defaults are those of ViT-B/16 and ViT-B/32."""

    width: int = 512
    depth: int = 12
    heads: int = 8
    feed_forward: int = 2048
    vocab_size: int = 49_408
    text_length: int = 77
    """Longest text that has positions, in tokens."""
    activation: Activation = "quick_gelu"
    """quick_gelu: OpenAI's; gelu: exact, as in most models of open_clip."""
    layer_norm_eps: float = 1e-5
    """Epsilon of LayerNorms."""

    def __post_init__(self) -> None:
        """Validate the sizes."""
        check_text_sizes(self.width, self.heads, self.depth)

    def build(self, dropout: float) -> CLIPText:
        """Return the tower with initial weights; CLIP has no dropout, so ``dropout`` changes nothing."""
        return CLIPText(self)


class CLIPText(Tower):
    """CLIP's text encoder without its projection: causal pre-norm blocks."""

    def __init__(self, cfg: CLIPTextConfig) -> None:
        """Linear layers keep PyTorch's default until the model initializes them."""
        super().__init__()
        self.words = TextPositions(cfg.width, vocabulary=cfg.vocab_size, text_length=cfg.text_length)
        self.blocks = nn.ModuleList(
            PreNormBlock(
                cfg.width,
                heads=cfg.heads,
                feed_forward=cfg.feed_forward,
                activation=cfg.activation,
                epsilon=cfg.layer_norm_eps,
            )
            for _ in range(cfg.depth)
        )
        self.norm_after = nn.LayerNorm(cfg.width, eps=cfg.layer_norm_eps)

    def forward(self, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> TowerOutput:
        """Return the normalized states (B, T, width) after ``layers`` of ids (B, T); ``mask`` is True at tokens.

        The final LayerNorm is applied to each returned state; the next block reads the state before it. A token attends
        to itself and to earlier ones, so padding on the right changes nothing. The pooled state is that of the last
        token of ``mask``: a processor ends each text with its only end-of-text token, which is where OpenAI's code
        (the highest id) and transformers (the first end-of-text token) pool.
        """
        x, states = self.words(ids), dict[int, Tensor]()
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()[None]
        for number, block in enumerate(self.blocks[: 1 + max(layers)]):
            x = block(x, causal)
            if number in layers:
                states[number] = self.norm_after(x)
        pooled = None
        if (top := layers[-1]) == len(self.blocks) - 1:
            pooled = states[top][torch.arange(len(ids), device=ids.device), last_token(mask)]
        return TowerOutput(tuple(states[number] for number in layers), pooled=pooled)

    def fsdp_blocks(self) -> Sequence[nn.Module]:
        """Return the blocks."""
        return list(self.blocks)

    def lr_layers(self) -> list[tuple[nn.Module, ...]]:
        """Return the levels of every tower, with the final LayerNorm at the level of the top block."""
        *lower, top = super().lr_layers()
        return [*lower, (*top, self.norm_after)]

    def attention_flow(self, flow: AttentionFlow, x: Tensor) -> list[Tensor]:
        """Return the relevance (N, M) after each block."""
        return flow.stack(self.blocks, x)


class TextPositions(Resizable):
    """The sum of word and position embeddings; positions count from 0."""

    embeds_text = True

    def __init__(self, width: int, *, vocabulary: int, text_length: int) -> None:
        """``text_length`` is the number of positions."""
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(text_length, width)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (B, T) as (B, T, width)."""
        if ids.shape[1] > self.position.num_embeddings:
            raise DualfuseError(
                f"a text of {ids.shape[1]} tokens is longer than the {self.position.num_embeddings} positions of the "
                "model; truncate it or increase text_length of the model"
            )
        return self.word(ids) + self.position.weight[: ids.shape[1]]

    def resize_tensor(
        self, name: str, tensor: Tensor, source: TextPositions, *, has_text: bool
    ) -> tuple[Tensor, str] | None:
        """Drop the positions beyond those of this module."""
        return cut_positions(name, tensor, self.position, unused=0)

    def extend_tensor(self, name: str, tensor: Tensor, source: TextPositions) -> Tensor | None:
        """Add the positions that this module has beyond those of ``source``."""
        return extend_positions(tensor, self.position, 0) if name.startswith("position.") else None


def last_token(mask: Tensor) -> Tensor:
    """Return the position (B,) of the last True of each row of ``mask`` (B, T)."""
    numbers = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask.bool(), numbers, 0).amax(1)


def check_text_sizes(width: int, heads: int, depth: int) -> None:
    """Raise DualfuseError unless ``heads`` divide ``width`` and ``depth`` is a possible number of blocks."""
    if heads < 1 or width % heads or not 1 <= depth <= MAX_DEPTH:
        raise DualfuseError(
            f"width is {width} with {heads} heads, depth {depth}; give a multiple of the heads, and 1 to {MAX_DEPTH}"
        )
