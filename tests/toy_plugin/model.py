"""A model of averages: patches and words alone, and their sum when fused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualfuse import Tokens, VisionLanguageModel
from dualfuse.layers.attention import gather_positions
from dualfuse.models.base import Fused, generation_error


@dataclass(frozen=True)
class ToyModelConfig:
    width: int = 16
    patch_size: int = 8
    vocab_size: int = 19

    def build(self) -> ToyModel:
        return ToyModel(self)


class ToyModel(VisionLanguageModel):
    def __init__(self, cfg: ToyModelConfig) -> None:
        super().__init__()
        self.width = self.fused_width = self.text_width = cfg.width
        self.vocab_size = cfg.vocab_size
        self.patches = nn.Conv2d(3, cfg.width, cfg.patch_size, cfg.patch_size)
        self.words = nn.Embedding(cfg.vocab_size, cfg.width)
        self.top = nn.Linear(cfg.width, cfg.width)

    def embed_image(self, images: Tensor, slot: int = 0) -> Tokens:
        x = self.patches(images)
        states = x.flatten(2).transpose(1, 2)
        states = torch.cat([states.mean(1, keepdim=True), states], dim=1)
        return Tokens(
            "image", (states,), torch.ones(states.shape[:2], dtype=torch.bool, device=states.device), tuple(x.shape[2:])
        )

    def embed_text(self, ids: Tensor, mask: Tensor) -> Tokens:
        return Tokens("text", (self.words(ids),), mask)

    def encode(self, tokens: Tokens) -> Tensor:
        return self.top(_mean(tokens))

    def fuse(
        self, image: Tokens, text: Tokens, positions: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Fused:
        if attention_mask is not None:
            raise generation_error(self)
        both = torch.tanh(_mean(image) * _mean(text))
        words, patches = text.states[0] + both[:, None], image.states[0] + both[:, None]
        if positions is not None:
            words, patches = gather_positions(words, positions), patches[:, :0]
        return Fused(words, patches, lambda: self.top(both))

    def fsdp_blocks(self) -> Iterable[nn.Module]:
        return (self.top,)


def _mean(tokens: Tokens) -> Tensor:
    weights = tokens.mask[:, :, None].to(tokens.states[0].dtype)
    return (tokens.states[0] * weights).sum(1) / weights.sum(1)
