"""CLIP's text encoder (arXiv 2103.00020): a causal Transformer, pooled at the end-of-text token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dualfuse.layers.embeddings import TextPositions
from dualfuse.layers.pre_norm import Activation
from dualfuse.models.towers.base import TextTowerConfig, TowerOutput
from dualfuse.models.towers.transformer import PreNormTower, check_sizes


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
        check_sizes(self.width, self.heads, self.depth)

    def build(self, dropout: float) -> CLIPText:
        """Return the tower with initial weights; CLIP has no dropout, so ``dropout`` changes nothing."""
        return CLIPText(self)


class CLIPText(PreNormTower):
    """CLIP's text encoder without its projection: causal pre-norm blocks."""

    def __init__(self, cfg: CLIPTextConfig) -> None:
        """Add positions for ``text_length`` tokens."""
        super().__init__()
        self.words = TextPositions(cfg.width, vocabulary=cfg.vocab_size, text_length=cfg.text_length)
        self.add_blocks(cfg)

    def forward(self, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> TowerOutput:
        """Return the normalized states (B, T, width) after ``layers`` of ids (B, T); ``mask`` is True at tokens.

        A token attends to itself and to earlier ones, so padding on the right changes nothing. The pooled state is that
        of the last token of ``mask``: a processor ends each text with its only end-of-text token, which is where
        OpenAI's code (the highest id) and transformers (the first end-of-text token) pool.
        """
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()[None]
        states, pooled = self.run(self.words(ids), layers, causal), None
        if layers[-1] == len(self.blocks) - 1:
            pooled = states[-1][torch.arange(len(ids), device=ids.device), last_token(mask)]
        return TowerOutput(tuple(states), pooled=pooled)


def last_token(mask: Tensor) -> Tensor:
    """Return the position (B,) of the last True of each row of ``mask`` (B, T)."""
    numbers = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask.bool(), numbers, 0).amax(1)
