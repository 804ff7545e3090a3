"""CLIP's step in ordinary PyTorch: two Transformers of torch.nn, and the contrastive loss of one device.

The yardstick for what a step of contrast alone costs with the towers of a model, and no library around them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.tasks.pretrain.pair_batch import PairBatch


@dataclass(frozen=True)
class Towers:
    """The sizes of two Transformers of equal width."""

    width: int
    depth: int
    heads: int
    patch: int
    image_size: tuple[int, int]
    vocabulary: int
    text_length: int


class Contrast(nn.Module):
    """Pre-norm encoders of images and texts, their first tokens projected and compared."""

    def __init__(self, size: Towers) -> None:
        """Weights are drawn as torch.nn does."""
        super().__init__()
        height, width = (side // size.patch for side in size.image_size)
        self.patches = nn.Conv2d(3, size.width, size.patch, stride=size.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.image_positions = nn.Parameter(torch.zeros(1, 1 + height * width, size.width))
        self.words = nn.Embedding(size.vocabulary, size.width)
        self.text_positions = nn.Parameter(torch.zeros(1, size.text_length, size.width))
        self.image, self.text = (_encoder(size) for _ in range(2))
        self.image_projection, self.text_projection = (nn.Linear(size.width, size.width, bias=False) for _ in range(2))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, batch: PairBatch) -> Tensor:
        """Return the symmetric contrastive loss."""
        patches = self.patches(batch["image"]).flatten(2).transpose(1, 2)
        patches = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1) + self.image_positions
        words = self.words(batch["ids"]) + self.text_positions[:, : batch["ids"].shape[1]]
        image = F.normalize(self.image_projection(self.image(patches)[:, 0]), dim=-1)
        text = F.normalize(self.text_projection(self.text(words, src_key_padding_mask=~batch["mask"])[:, 0]), dim=-1)
        logits = self.logit_scale.exp() * image @ text.T
        same = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


def _encoder(size: Towers) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        size.width, size.heads, 4 * size.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, size.depth, nn.LayerNorm(size.width), enable_nested_tensor=False)
