"""Trains a tokenizer of visual words: images are told in codes, and drawn from them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.data.image.two_views import tokenizer_view
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.evaluation.runner import Evaluation, EvaluationData, Plan
from dualfuse.layers.vq.autoencoder import Autoencoder
from dualfuse.layers.vq.codebook import count, perplexity
from dualfuse.tasks.base import Task, TaskConfig, TaskOutput
from dualfuse.tasks.pretrain.codebook_grid import codebook_grid

DRAWN = 256  # images whose codes are counted in a grid


class ViewExample(TypedDict):
    """One image as the tokenizer sees it: (3, H, W) uint8."""

    view: Tensor


class ViewBatch(TypedDict):
    """B images (B, 3, H, W) uint8."""

    view: Tensor


@dataclass(frozen=True)
class VQTokenizerConfig(TaskConfig):
    """What the two sides of the loss weigh."""

    commitment: float = 0.25
    """Weight of the distance between what was encoded and its code, as in VQ-VAE."""

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> ViewExample:
        """Return the image as masked image modelling names it; texts are not looked at."""
        return {"view": tokenizer_view(sample.image, processor.image, rng)}

    def collate(self, rows: Sequence[ViewExample]) -> ViewBatch:
        """Put images of one size together."""
        return {"view": torch.stack([row["view"] for row in rows])}

    def build(self, model: Autoencoder) -> VQTokenizer:
        """Return the task; it has no head."""
        return VQTokenizer(self, model)


class VQTokenizer(Task):
    """The squared error of images drawn from their codes."""

    cfg: VQTokenizerConfig
    model: Autoencoder  # pyright: ignore[reportIncompatibleVariableOverride]  it learns from images alone
    can_draw = True

    def __init__(self, cfg: VQTokenizerConfig, model: Autoencoder) -> None:
        """All weights are the model's."""
        super().__init__()
        self.cfg = cfg
        self.model = model

    def forward(self, batch: ViewBatch) -> TaskOutput:
        """Draw images from their codes.

        Logged: the error, pixels from 0 to 1; and of how many codes the batch made use, as a share, and weighed.
        """
        images = batch["view"].float() / 255
        drawn = self.model.reconstruct(images)
        error = F.mse_loss(drawn.images.float(), images)
        loss = error + self.cfg.commitment * drawn.commitment
        counts = dist.all_reduce_mean(count(drawn.codes, self.model.codes))
        log = {"loss": loss, "error": error, "commitment": drawn.commitment}
        log |= {"codes/used": (counts > 0).float().mean(), "codes/perplexity": perplexity(counts)}
        return TaskOutput(loss, {name: value.detach() for name, value in log.items()})

    def draw(self, data: EvaluationData, path: Path) -> None:
        """Draw the first images of a set beside their reconstructions, and how often each code is used."""
        run = Evaluation(self, data, Plan(batch_size=DRAWN, num_workers=0, exclude_broken=True))
        codebook_grid(self.model, next(run.batches(self.cfg.read, self.cfg.collate))["view"]).save(path)
