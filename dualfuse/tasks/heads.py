"""The heads of the published systems."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WordHead(nn.Module):
    """Predicts word pieces: dense, exact GELU, LayerNorm (epsilon 1e-12), decoder of its own."""

    def __init__(self, width: int, vocabulary: int) -> None:
        """The decoder is not tied to the word embedding."""
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.decoder = nn.Linear(width, vocabulary)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Turns states (M, D) into logits (M, V)."""
        return self.decoder(self.norm(F.gelu(self.dense(x))))


class Projections(nn.Module):
    """One view of the contrastive objective: a matrix per modality, unit length, and a temperature."""

    def __init__(self, width: int) -> None:
        """Both matrices are D x D without bias; the temperature starts at 0.07."""
        super().__init__()
        self.image = nn.Linear(width, width, bias=False)
        self.text = nn.Linear(width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))
        initialise(self)

    @property
    def scale(self) -> Tensor:
        """The factor (1,) between cosine similarities and logits; at most 1000, so that no logit overflows."""
        return self.log_scale.clamp(max=math.log(1000.0)).exp()


def unit(x: Tensor) -> Tensor:
    """Gives rows of length one (no epsilon, as in the released code)."""
    return x / x.norm(dim=-1, keepdim=True)


def initialise(head: nn.Module) -> None:
    """Draws every matrix of a head from a normal of 0.02 and sets biases to zero, as the released code does."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
