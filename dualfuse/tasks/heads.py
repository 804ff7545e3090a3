"""The heads of the published systems."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WordHead(nn.Module):
    """Predicts word pieces: dense, exact GELU, LayerNorm (epsilon 1e-12), decoder of its own."""

    def __init__(self, width: int, vocabulary: int, std: float = 0.02) -> None:
        """The decoder is not tied to the word embedding."""
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.decoder = nn.Linear(width, vocabulary)
        initialise(self.dense, std)
        initialise(self.decoder)  # whatever std: at first no word should be likelier than others

    def forward(self, x: Tensor) -> Tensor:
        """Turns states (M, D) into logits (M, V)."""
        return self.decoder(self.norm(F.gelu(self.dense(x))))


class Projections(nn.Module):
    """One view of the contrastive objective: a matrix per modality, unit length, and a temperature."""

    def __init__(self, width: int, std: float = 0.02) -> None:
        """Both matrices are D x D without bias; the temperature starts at 0.07."""
        super().__init__()
        self.image = nn.Linear(width, width, bias=False)
        self.text = nn.Linear(width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))
        initialise(self, std)

    @property
    def scale(self) -> Tensor:
        """The factor (1,) between cosine similarities and logits; at most 1000, so that no logit overflows."""
        return self.log_scale.clamp(max=math.log(1000.0)).exp()


def unit(x: Tensor) -> Tensor:
    """Gives rows of length one (no epsilon, as in the released code)."""
    return x / x.norm(dim=-1, keepdim=True)


def initialise(head: nn.Module, std: float = 0.02) -> None:
    """Draws every matrix of a head from a normal of ``std`` (0.02 in the released code) and sets biases to zero."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
