"""Training of a visual tokenizer: images are encoded to codes and reconstructed from them (VQ-VAE)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypedDict

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from dualfuse import distributed as dist
from dualfuse.data.image.image_grid import FAINT, INK, PAPER, Tile, below, image_grid, save_drawing
from dualfuse.data.image.two_views import tokenizer_view
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.evaluation.predictions import SampleLoss
from dualfuse.evaluation.runner import Evaluation, EvaluationData, EvaluationResult, Plan
from dualfuse.layers.vq.autoencoder import Autoencoder
from dualfuse.layers.vq.codebook import count, perplexity
from dualfuse.metrics.base import MetricInfo, shares
from dualfuse.tasks.base import Task, TaskConfig, TaskOutput, detached, keyed_batches

DRAWN = 256  # images whose codes are counted in a grid
CELL, COLUMNS, HEIGHT, MARGIN = 192, 5, 120, 8  # of the grid, in pixels and cells
CHUNK = 64  # images that are reconstructed at a time


class Views(TypedDict):
    """One view (3, H, W) uint8 of an image, or a batch of them."""

    view: Tensor


@dataclass(frozen=True)
class VQTokenizerConfig(TaskConfig):
    """Weight of the commitment loss."""

    reads_text: ClassVar[bool] = False
    trains_tokenizer: ClassVar[bool] = True

    commitment: float = 0.25
    """Weight of the distance between encoder outputs and their code embeddings, as in VQ-VAE."""

    def read(self, sample: Sample, processor: Processor, rng: np.random.Generator) -> Views:
        """Return the view that masked image modeling tokenizes; texts are ignored."""
        return {"view": tokenizer_view(sample.image, processor.image, rng)}

    def collate(self, examples: Sequence[Views]) -> Views:
        """Return a batch of views of one size."""
        return {"view": torch.stack([example["view"] for example in examples])}

    def metrics(self, plan: Plan) -> tuple[MetricInfo, ...]:
        """Declare losses, and the use of codes over a whole set."""
        lower = (MetricInfo(name, higher_is_better=False) for name in ("loss", "error", "commitment"))
        used, spread = shares("codes/used", whole_set=True), MetricInfo("codes/perplexity", "codes", whole_set=True)
        return (*lower, *used, spread)

    def build(self, model: Autoencoder) -> VQTokenizer:
        """Return the task."""
        return VQTokenizer(self, model)


class VQTokenizer(Task):
    """Trains an autoencoder on the squared error of reconstructions."""

    cfg: VQTokenizerConfig
    model: Autoencoder  # pyright: ignore[reportIncompatibleVariableOverride]
    can_draw = True

    def __init__(self, cfg: VQTokenizerConfig, model: Autoencoder) -> None:
        """The task has no head: all weights are the model's."""
        super().__init__()
        self.cfg = cfg
        self.model = model  # pyright: ignore[reportIncompatibleVariableOverride]

    def forward(self, batch: Views) -> TaskOutput:
        """Return reconstruction error plus weighted commitment loss.

        Logs the mean squared error of pixels from 0 to 1, the fraction of codes in use, and their perplexity.
        """
        images = batch["view"].float() / 255
        output = self.model.reconstruct(images)
        error = F.mse_loss(output.images.float(), images)
        loss = error + self.cfg.commitment * output.commitment
        counts = dist.all_reduce_mean(count(output.codes, self.model.codes))
        log = {"loss": loss, "error": error, "commitment": output.commitment}
        log |= {"codes/used": (counts > 0).float().mean(), "codes/perplexity": perplexity(counts)}
        return TaskOutput(loss, detached(log))

    @property
    def has_sample_results(self) -> bool:
        """Whether :meth:`evaluate` returns the loss of each image."""
        return True

    @torch.inference_mode()
    def evaluate(self, data: EvaluationData, plan: Plan) -> EvaluationResult:
        """Return loss, error and commitment as means over images, and the use of codes over the whole set.

        With ``plan.answers`` the loss of each image is returned, too.
        """
        run, counts = Evaluation(self, data, plan), torch.zeros(self.model.codes, device=self.device)
        errors, commitments, images, losses = 0.0, 0.0, 0, list[SampleLoss]()
        for batch, keys in keyed_batches(self.cfg, run, "images"):
            views = batch["view"].float() / 255
            output = self.model.reconstruct(views)
            errors += F.mse_loss(output.images.float(), views).item() * len(views)
            commitments += output.commitment.item() * len(views)
            counts += count(output.codes, self.model.codes)
            images += len(views)
            if plan.answers:  # batches of one
                error = F.mse_loss(output.images.float(), views) + self.cfg.commitment * output.commitment
                losses.append(SampleLoss(keys[0], float(error)))
        error, commitment = errors / images, commitments / images
        means = {"loss": error + self.cfg.commitment * commitment, "error": error, "commitment": commitment}
        used = {"codes/used": (counts > 0).float().mean().item(), "codes/perplexity": perplexity(counts).item()}
        return run.result(means | used, f"{images} images", losses)

    def draw(self, data: EvaluationData, path: Path) -> None:
        """Draw the first images of a set with their reconstructions, and the code usage."""
        run = Evaluation(self, data, Plan(batch_size=DRAWN, num_workers=0, exclude_broken=True))
        batch = next(run.batches(self.cfg.read, self.cfg.collate))
        save_drawing(codebook_grid(self.model, batch["view"]), path)


@torch.inference_mode()
def codebook_grid(model: Autoencoder, views: Tensor, *, shown: int = 25) -> Image.Image:
    """Draw the first ``shown`` of ``views`` (B, 3, H, W) uint8 with their reconstructions.

    The heading states the mean squared error of all B, for pixels from 0 to 1, and the number of codes in use; the
    bars below are the counts of codes, in descending order.
    """
    model = model.eval()
    device, errors, tiles = model.codebook.embeddings.device, [], []
    counts = torch.zeros(model.codes, dtype=torch.float32, device=device)
    for part in views.split(CHUNK):
        images = part.to(device).float() / 255
        output = model.reconstruct(images)
        error = (output.images - images).square().mean((1, 2, 3))
        counts += count(output.codes, model.codes)
        errors.append(error)
        pairs = _pixels(torch.cat([images, output.images], dim=3)[: max(0, shown - len(tiles))])
        tiles += [Tile(pair, f"error {value:.4f}") for pair, value in zip(pairs, error.tolist(), strict=False)]
    heading = (
        f"{int((counts > 0).sum())} of {model.codes} codes used, perplexity {perplexity(counts).item():.0f}; "
        f"error {torch.cat(errors).mean().item():.4f} over {len(views)} images"
    )
    grid = image_grid(tiles, columns=COLUMNS, cell=CELL, heading=heading)
    return below(grid, _bars(counts.sort(descending=True).values.cpu().numpy(), grid.width))


def _pixels(images: Tensor) -> list[np.ndarray]:
    """Return (H, W, 3) uint8 of images (B, 3, H, W) from 0 to 1."""
    return list((255 * images).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def _bars(counts: np.ndarray, width: int) -> Image.Image:
    """Draw counts (K,) of codes as columns of pixels on a log scale; a column may skip codes."""
    image = Image.new("RGB", (width, HEIGHT), PAPER)
    draw, inner = ImageDraw.Draw(image), width - 2 * MARGIN
    codes = np.minimum(np.arange(inner) * len(counts) // inner, len(counts) - 1)
    heights = np.log1p(counts[codes]) / np.log1p(max(1, counts.max())) * (HEIGHT - 2 * MARGIN)
    for x, height in enumerate(heights.tolist(), start=MARGIN):
        if height > 0:
            draw.line((x, HEIGHT - MARGIN, x, HEIGHT - MARGIN - height), INK)
    draw.line((MARGIN, HEIGHT - MARGIN, width - MARGIN, HEIGHT - MARGIN), FAINT)
    return image
