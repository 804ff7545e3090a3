"""A dual encoder of two towers without a fusion encoder: CLIP (arXiv 2103.00020), SigLIP (arXiv 2303.15343)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dualfuse.layers.init import init_normal
from dualfuse.models.base import Capabilities, Fused, Tokens, fusion_error
from dualfuse.models.towers.base import ImageTowerConfig, TextTowerConfig, Tower
from dualfuse.models.towers.clip_text import CLIPTextConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.two_towers import TwoTowers, first_state, top_layer


@dataclass(frozen=True)
class DualEncoderConfig:
    """An image tower and a text tower; the defaults are those of CLIP ViT-B/16."""

    image: ImageTowerConfig = field(default_factory=lambda: CLIPViTConfig(image_size=(224, 224)))
    text: TextTowerConfig = field(default_factory=CLIPTextConfig)
    dropout: float = 0.0
    """Dropout of a text tower that has it."""
    init_std: float = 0.02
    """Standard deviation of initial linear weights."""

    def build(self) -> DualEncoder:
        """Return the model with its initial weights."""
        return DualEncoder(self)


class DualEncoder(TwoTowers):
    """Two towers whose pooled states ITC compares; projections, logit scale and bias are those of the ITC head.

    ``Tokens.states`` are the pooled state (B, 1, W) alone.
    """

    capabilities = Capabilities(fusion=False)
    reads_pooled_states = True

    def __init__(self, cfg: DualEncoderConfig) -> None:
        """Initialize linear weights and embeddings from a normal distribution, and biases with zero."""
        super().__init__()
        self.width, self.text_width, self.fused_width = cfg.image.width, cfg.text.width, 0
        self._encode_widths = cfg.image.pooled_width, cfg.text.pooled_width
        self.vocab_size = cfg.text.vocab_size
        self.image_tower, self.text_tower = cfg.image.build(), cfg.text.build(cfg.dropout)
        init_normal(self, cfg.init_std)

    def embed_image(self, images: Tensor, slot: int = 0) -> Tokens:
        """Run the image tower on images (B, 3, H, W); ``slot`` makes no difference."""
        output = self.run_image_tower(images)
        mask = torch.ones(output.states[0].shape[:2], dtype=torch.bool, device=images.device)
        return Tokens("image", (first_state(output)[:, None],), mask, output.grid)

    def embed_text(self, ids: Tensor, mask: Tensor) -> Tokens:
        """Run the text tower on texts (B, T)."""
        mask = mask.bool()
        return Tokens("text", (first_state(self.run_text_tower(ids, mask))[:, None],), mask)

    def fuse(
        self, image: Tokens, text: Tokens, positions: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Fused:
        """Raise DualfuseError, which says how to add a fusion encoder."""
        raise fusion_error(self)

    def layers_to_read(self, tower: Tower) -> tuple[int, ...]:
        """Return the number of the top layer."""
        return (top_layer(tower),)
