"""Prediction heads: ITC, MLM and classification."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.errors import DualfuseError


class MLMHead(nn.Module):
    """Predicts tokens: dense layer, exact GELU, LayerNorm, and a decoder that is not tied to the word embedding."""

    def __init__(self, width: int, vocabulary: int, *, epsilon: float = 1e-12, std: float = 0.02) -> None:
        """``epsilon`` is that of the LayerNorm, ``std`` the initial standard deviation of the dense layer."""
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.decoder = nn.Linear(width, vocabulary)
        init_linear(self.dense, std)
        init_linear(self.decoder)  # not by std: initially all tokens should be about equally likely

    def forward(self, x: Tensor) -> Tensor:
        """Turn states (M, D) into logits (M, V)."""
        return self.decoder(self.norm(F.gelu(self.dense(x))))


class ClassificationHead(nn.Sequential):
    """The two-layer head of fine-tuning: linear, LayerNorm (epsilon 1e-5), exact GELU, linear."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        """``width`` is that of the input, ``hidden`` that of the layer between."""
        super().__init__(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, classes))
        init_linear(self)


@dataclass(frozen=True)
class ITCHeadConfig:
    """Projection and loss of image-text contrast; the defaults are VLMo's."""

    width: int = 0
    """Width of the projected features; 0: that of the model."""
    hidden: int = 0
    """Width of a hidden layer (linear, GELU, dropout) in each projection, for frozen towers; 0: one linear map."""
    dropout: float = 0.0
    """Dropout after the hidden layer."""
    layer_norm: bool = False
    """Whether features pass a LayerNorm without parameters before the projections, for frozen towers."""
    projection: Literal["linear", "none"] = "linear"
    """none: the model's own features are compared as they are, for towers that end in a projection (SigLIP)."""
    bias: bool = False
    """Whether projections have a bias, as in BridgeTower."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """"softmax": cross-entropy over the global batch (CLIP, VLMo); "sigmoid": binary cross-entropy of every pair, with
    a learned logit bias (SigLIP)."""
    temperature: Literal["log", "plain"] = "log"
    """Learned parameter. log: log(1 / temperature); plain: the temperature, 0.001 to 0.5 (official BridgeTower)."""
    fused: bool = False
    """Also contrast images and texts with the fused features of positive pairs (Hugging Face's BridgeTower)."""

    def __post_init__(self) -> None:
        """Validate that fused features are contrasted by softmax, and that only projections have sizes."""
        if self.projection == "none" and (self.width or self.hidden or self.bias or self.layer_norm):
            raise DualfuseError("itc_head.projection none takes no width, hidden, bias or layer_norm; remove them")
        if self.fused and self.loss == "sigmoid":
            raise DualfuseError("itc_head.fused needs itc_head.loss softmax; set fused to False or loss to softmax")


class ITCHead(nn.Module):
    """A projection per modality, and the scale (and for the sigmoid loss the bias) of the logits."""

    def __init__(self, cfg: ITCHeadConfig, widths: tuple[int, int], *, fused_width: int, std: float = 0.02) -> None:
        """``widths`` are those of image and text features, ``std`` is the initial standard deviation.

        The temperature starts at 0.07 for softmax; at 0.1, with a logit bias of -10, for sigmoid. Raises DualfuseError
        if images and texts have different widths and ``cfg.width`` is 0.
        """
        super().__init__()
        if not cfg.width and widths[0] != widths[1]:
            raise DualfuseError(
                f"ITC compares images of width {widths[0]} with texts of width {widths[1]}: set itc_head.width, the "
                "width that both are projected to"
            )
        size = cfg.width or widths[0]
        self.image = projection(cfg, widths[0], size)
        self.text = projection(cfg, widths[1], size)
        self.fused = nn.Linear(fused_width, size, bias=cfg.bias) if cfg.fused else None
        temperature = 0.07 if cfg.loss == "softmax" else 0.1
        if cfg.temperature == "log":
            self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / temperature)]))
        else:
            self.temperature = nn.Parameter(torch.tensor([temperature]))
        self.logit_bias = nn.Parameter(torch.tensor([-10.0])) if cfg.loss == "sigmoid" else None
        init_linear(self, std)

    def project(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalized embeddings (B, D) of image and text features (B, width)."""
        return normalize(self.image(image)), normalize(self.text(text))

    @property
    def scale(self) -> Tensor:
        """The factor (1,) from cosine similarities to logits, at most 1000."""
        if hasattr(self, "logit_scale"):
            return self.logit_scale.clamp(max=math.log(1000.0)).exp()
        within = self.temperature.clamp(0.001, 0.5)
        # straight-through: a temperature outside of the bounds still receives a gradient
        return 1 / (self.temperature + (within - self.temperature).detach())


def projection(cfg: ITCHeadConfig, width: int, size: int) -> nn.Module:
    """Return the projection of features of ``width`` to ``size``."""
    if cfg.projection == "none":
        return nn.Identity()
    norm = [nn.LayerNorm(width, elementwise_affine=False)] if cfg.layer_norm else []
    if not cfg.hidden:
        linear = nn.Linear(width, size, bias=cfg.bias)
        return nn.Sequential(*norm, linear) if norm else linear
    hidden = (nn.Linear(width, cfg.hidden), nn.GELU(), nn.Dropout(cfg.dropout))
    return nn.Sequential(*norm, *hidden, nn.Linear(cfg.hidden, size, bias=cfg.bias))


def normalize(x: Tensor) -> Tensor:
    """Return x (..., D) divided by its L2 norm (without an epsilon, as in the official code)."""
    return x / x.norm(dim=-1, keepdim=True)


def init_linear(head: nn.Module, std: float = 0.02) -> None:
    """Initialize weights of linear layers from a normal distribution of ``std``, and biases to zero."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
