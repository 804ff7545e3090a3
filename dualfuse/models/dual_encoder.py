"""A dual encoder of two towers without a fusion encoder: CLIP (arXiv 2103.00020), SigLIP (arXiv 2303.15343)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dualfuse.models.base import Capabilities, Fused, Tokens, VisionLanguageModel, fusion_error
from dualfuse.models.towers.base import ImageTowerConfig, TextTowerConfig, Tower, TowerOutput
from dualfuse.models.towers.clip_text import CLIPTextConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig


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


class DualEncoder(VisionLanguageModel):
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
        _initialize(self, cfg.init_std)

    @property
    def encode_widths(self) -> tuple[int, int]:
        """Widths of the pooled states of both towers."""
        return self._encode_widths

    def embed_image(self, images: Tensor, slot: int = 0) -> Tokens:
        """Run the image tower on images (B, 3, H, W); ``slot`` makes no difference."""
        tower, layers, stored = self.image_tower, self.layers_to_read(self.image_tower), self.stored_states
        output: TowerOutput = tower(images, layers=layers) if stored is None else stored.image(tower, images, layers)
        mask = torch.ones(output.states[0].shape[:2], dtype=torch.bool, device=images.device)
        return Tokens("image", (_pooled(output),), mask, output.grid)

    def embed_text(self, ids: Tensor, mask: Tensor) -> Tokens:
        """Run the text tower on texts (B, T)."""
        mask = mask.bool()
        tower, layers, stored = self.text_tower, self.layers_to_read(self.text_tower), self.stored_states
        output: TowerOutput = (
            tower(ids, mask, layers=layers) if stored is None else stored.text(tower, ids, mask, layers)
        )
        return Tokens("text", (_pooled(output),), mask)

    def encode(self, tokens: Tokens) -> Tensor:
        """Return the tower's pooled state (B, W), of the width that ``encode_widths`` has for the modality."""
        return tokens.states[0][:, 0]

    def patch_states(self, images: Tensor) -> Tensor:
        """Return the image tower's top states (B, P, W) of the patches of images (B, 3, H, W)."""
        output: TowerOutput = self.image_tower(images, layers=(_top(self.image_tower),))
        return output.states[0][:, 1:]

    def fuse(
        self, image: Tokens, text: Tokens, positions: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Fused:
        """Raise DualfuseError, which says how to add a fusion encoder."""
        raise fusion_error(self)

    def towers(self) -> dict[str, Tower]:
        """Return both towers."""
        return {"image": self.image_tower, "text": self.text_tower}

    def layers_to_read(self, tower: Tower) -> tuple[int, ...]:
        """Return the number of the top layer."""
        return (_top(tower),)

    def fsdp_blocks(self) -> Iterable[nn.Module]:
        """Return the layers of both towers."""
        yield from self.image_tower.fsdp_blocks()
        yield from self.text_tower.fsdp_blocks()

    def lr_layers(self) -> Iterable[tuple[nn.Module, ...]]:
        """Return the towers' embeddings, then the towers' layers level with their tops."""
        (image, *image_levels), (text, *text_levels) = self.image_tower.lr_layers(), self.text_tower.lr_layers()
        yield *image, *text
        for below in reversed(range(max(len(image_levels), len(text_levels)))):
            yield tuple(
                part for levels in (image_levels, text_levels) if below < len(levels) for part in levels[-1 - below]
            )


def _top(tower: Tower) -> int:
    return len(tower.fsdp_blocks()) - 1


def _pooled(output: TowerOutput) -> Tensor:
    return output.states[-1][:, :1] if output.pooled is None else output.pooled[:, None]


def _initialize(model: DualEncoder, std: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
