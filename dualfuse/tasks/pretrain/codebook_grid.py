"""Draws what a tokenizer of visual words makes of images: each beside what its codes tell, and how codes are used."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dualfuse.data.image.image_grid import FAINT, INK, PAPER, Tile, image_grid
from dualfuse.layers.vq.autoencoder import Autoencoder
from dualfuse.layers.vq.codebook import count, perplexity

CELL, COLUMNS, HEIGHT, MARGIN = 192, 5, 120, 8
AT_ONCE = 64


@torch.inference_mode()
def codebook_grid(model: Autoencoder, views: Tensor, *, shown: int = 25) -> Image.Image:
    """Return the first ``shown`` of ``views`` (B, 3, H, W) uint8 beside their reconstructions.

    Above them stands the mean squared error of all B, with pixels from 0 to 1, and how many codes they use; below
    them, how often each code is used, the most frequent first.
    """
    model = model.eval()
    device, errors, tiles = model.codebook.embeddings.device, [], []
    counts = torch.zeros(model.codes, device=device)
    for part in views.split(AT_ONCE):
        images = part.to(device).float() / 255
        drawn = model.reconstruct(images)
        error = (drawn.images - images).square().mean((1, 2, 3))
        counts += count(drawn.codes, model.codes)
        errors.append(error)
        pairs = _pixels(torch.cat([images, drawn.images], dim=3)[: max(0, shown - len(tiles))])
        tiles += [Tile(pair, f"error {value:.4f}") for pair, value in zip(pairs, error.tolist(), strict=False)]
    heading = (
        f"{int((counts > 0).sum())} of {model.codes} codes used, perplexity {perplexity(counts).item():.0f}; "
        f"error {torch.cat(errors).mean().item():.4f} over {len(views)} images"
    )
    grid = image_grid(tiles, columns=COLUMNS, cell=CELL, heading=heading)
    bars = _bars(counts.sort(descending=True).values.cpu().numpy(), grid.width)
    whole = Image.new("RGB", (grid.width, grid.height + bars.height), PAPER)
    whole.paste(grid, (0, 0))
    whole.paste(bars, (0, grid.height))
    return whole


def _pixels(images: Tensor) -> list[np.ndarray]:
    """Return (H, W, 3) uint8 of images (B, 3, H, W) from 0 to 1."""
    return list((255 * images).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def _bars(counts: np.ndarray, width: int) -> Image.Image:
    """Draw how often each code is used (K,), one column of pixels per code or per some codes, on a log scale."""
    image = Image.new("RGB", (width, HEIGHT), PAPER)
    draw, inner = ImageDraw.Draw(image), width - 2 * MARGIN
    places = np.minimum(np.arange(inner) * len(counts) // inner, len(counts) - 1)
    heights = np.log1p(counts[places]) / np.log1p(max(1, counts.max())) * (HEIGHT - 2 * MARGIN)
    for place, height in enumerate(heights.tolist()):
        if height > 0:
            draw.line((MARGIN + place, HEIGHT - MARGIN, MARGIN + place, HEIGHT - MARGIN - height), INK)
    draw.line((MARGIN, HEIGHT - MARGIN, width - MARGIN, HEIGHT - MARGIN), FAINT)
    return image
