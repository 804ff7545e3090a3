"""The heads of the published systems."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.losses.grad_cache import grad_cache


class MLMHead(nn.Module):
    """Predicts tokens: dense, exact GELU, LayerNorm, decoder of its own."""

    def __init__(self, width: int, vocabulary: int, *, epsilon: float = 1e-12, std: float = 0.02) -> None:
        """The decoder is not tied to the word embedding; ``epsilon`` is the LayerNorm's."""
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.decoder = nn.Linear(width, vocabulary)
        init_linear(self.dense, std)
        init_linear(self.decoder)  # whatever std: at first no word should be likelier than others

    def forward(self, x: Tensor) -> Tensor:
        """Turn states (M, D) into logits (M, V)."""
        return self.decoder(self.norm(F.gelu(self.dense(x))))

    def loss(self, states: Tensor, targets: Tensor, grad_cache_chunk: int = 0) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the masked words of all processes, and the share that was right.

        ``states`` (B, R, D), ``targets`` (B, R), -100 where there is none; only the others are predicted. Logits
        are held for ``grad_cache_chunk`` texts (0: for all).
        """
        number = dist.all_reduce_mean((targets != -100).sum().float()).clamp(min=1)
        losses, right = grad_cache(self._sums, grad_cache_chunk, states, targets)
        return losses.sum() / number, right.sum() / number

    def _sums(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        is_masked = targets != -100
        logits, wanted = self(states[is_masked]), targets[is_masked]
        loss = F.cross_entropy(logits.float(), wanted, reduction="sum")
        return loss[None], (logits.argmax(1) == wanted).sum()[None]


def itm_loss(logits: Tensor, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean loss of matching over the pairs of all processes, and the accuracies on right and wrong ones.

    ``logits`` (M, 2) are those of right pairs, then of the wrong ones, of which some were ``drawn`` (W,) and count.
    """
    right = len(logits) - len(drawn)
    counts = torch.cat([drawn.new_ones(right), drawn])
    is_right = torch.arange(len(logits), device=logits.device) < right
    losses = F.cross_entropy(logits, is_right.long(), reduction="none") * counts
    correct = (logits.argmax(1) == is_right.long()) & counts
    accuracies = {
        "accuracy/itm_positive": correct[:right].sum() / max(1, right),
        "accuracy/itm_negative": correct[right:].sum() / drawn.sum().clamp(min=1),
    }
    return losses.sum() / dist.all_reduce_mean(counts.sum().float()).clamp(min=1), accuracies


class ClassificationHead(nn.Sequential):
    """The two-layer head of fine-tuning: linear, LayerNorm (epsilon 1e-5), exact GELU, linear."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        """``width`` is that of what is classified, ``hidden`` that between both layers."""
        super().__init__(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, classes))
        init_linear(self)


@dataclass(frozen=True)
class ITCHeadConfig:
    """How contrast projects; the defaults are VLMo's."""

    width: int = 0
    """Of the vectors that are compared; 0: the model's."""
    bias: bool = False
    """BridgeTower's projections have one."""
    temperature: Literal["log", "plain"] = "log"
    """What is trained: log(1 / temperature); or, as in the official BridgeTower, the temperature, from 0.001 to 0.5."""
    fused: bool = False
    """Also contrast both with the vector of the right pair, as Hugging Face's BridgeTower does."""


class ITCHead(nn.Module):
    """One view of the contrastive objective: a matrix per modality, unit length, and a temperature."""

    def __init__(self, cfg: ITCHeadConfig, width: int, *, fused_width: int, std: float = 0.02) -> None:
        """``width`` and ``fused_width`` are the model's; the temperature starts at 0.07."""
        super().__init__()
        size = cfg.width or width
        self.image = nn.Linear(width, size, bias=cfg.bias)
        self.text = nn.Linear(width, size, bias=cfg.bias)
        self.fused = nn.Linear(fused_width, size, bias=cfg.bias) if cfg.fused else None
        if cfg.temperature == "log":
            self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))
        else:
            self.temperature = nn.Parameter(torch.tensor([0.07]))
        init_linear(self, std)

    @property
    def scale(self) -> Tensor:
        """The factor (1,) between cosine similarities and logits; at most 1000, so that no logit overflows."""
        if hasattr(self, "logit_scale"):
            return self.logit_scale.clamp(max=math.log(1000.0)).exp()
        within = self.temperature.clamp(0.001, 0.5)
        # the gradient passes the clamp: a temperature that was pushed out finds its way back
        return 1 / (self.temperature + (within - self.temperature).detach())


def normalize(x: Tensor) -> Tensor:
    """Return rows of length one (no epsilon, as in the official code)."""
    return x / x.norm(dim=-1, keepdim=True)


def init_linear(head: nn.Module, std: float = 0.02) -> None:
    """Draw every matrix of a head from a normal of ``std`` (0.02 in the official code) and sets biases to zero."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
