"""Trains a tokenizer of visual words: pictures are told in codes, and drawn from them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import dist
from dualfuse.data.sample import Sample
from dualfuse.data.two_views import one_view
from dualfuse.layers.autoencoder import Autoencoder
from dualfuse.layers.codebook import count, perplexity
from dualfuse.tasks.base import Output, Prep, Task


class ViewRow(TypedDict):
    """One picture as the tokenizer sees it: (3, H, W) uint8."""

    view: Tensor


class ViewBatch(TypedDict):
    """B pictures (B, 3, H, W) uint8."""

    view: Tensor


@dataclass(frozen=True)
class ReconstructionConfig:
    """What the two sides of the loss weigh."""

    commitment: float = 0.25
    """Weight of the distance between what was encoded and its code, as in VQ-VAE."""

    def read(self, sample: Sample, prep: Prep, rng: np.random.Generator) -> ViewRow:
        """Gives the picture as masked image modelling names it; texts are not looked at."""
        return {"view": one_view(sample.image, prep.image, rng)}

    def collate(self, rows: Sequence[ViewRow]) -> ViewBatch:
        """Puts pictures of one size together."""
        return {"view": torch.stack([row["view"] for row in rows])}

    def build(self, model: Autoencoder) -> Reconstruct:
        """Gives the task; it has no head."""
        return Reconstruct(self, model)


class Reconstruct(Task):
    """The squared error of pictures drawn from their codes."""

    model: Autoencoder

    def __init__(self, cfg: ReconstructionConfig, model: Autoencoder) -> None:
        """All weights are the model's."""
        super().__init__()
        self.cfg = cfg
        self.model = model  # pyright: ignore[reportIncompatibleVariableOverride]  it learns from pictures alone

    def forward(self, batch: ViewBatch) -> Output:
        """Draws pictures from their codes.

        Logged: the error, pixels from 0 to 1; and of how many codes the batch made use, as a share, and weighed.
        """
        pictures = batch["view"].float() / 255
        drawn = self.model.reconstruct(pictures)
        error = F.mse_loss(drawn.pictures.float(), pictures)
        loss = error + self.cfg.commitment * drawn.commitment
        counts = dist.mean(count(drawn.codes, self.model.codes))
        log = {"loss": loss, "error": error, "commitment": drawn.commitment}
        log |= {"codes/used": (counts > 0).float().mean(), "codes/perplexity": perplexity(counts)}
        return Output(loss, {name: value.detach() for name, value in log.items()})
