"""Draws what a tokenizer of visual words makes of pictures: each beside what its codes tell, and how codes are used."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dualfuse.data.contact_sheet import FAINT, INK, PAPER, Tile, contact_sheet
from dualfuse.layers.autoencoder import Autoencoder
from dualfuse.layers.codebook import count, perplexity

CELL, COLUMNS, HEIGHT, MARGIN = 192, 5, 120, 8
AT_ONCE = 64


@torch.inference_mode()
def codebook_sheet(model: Autoencoder, views: Tensor, *, shown: int = 25) -> Image.Image:
    """Gives you the first ``shown`` of ``views`` (B, 3, H, W) uint8 beside their reconstructions.

    Above them stands the mean squared error of all B, with pixels from 0 to 1, and how many codes they use; below
    them, how often each code is used, the most frequent first.
    """
    model = model.eval()
    device, errors, tiles = model.codebook.vectors.device, [], []
    counts = torch.zeros(model.codes, device=device)
    for part in views.split(AT_ONCE):
        pictures = part.to(device).float() / 255
        drawn = model.reconstruct(pictures)
        error = (drawn.pictures - pictures).square().mean((1, 2, 3))
        counts += count(drawn.codes, model.codes)
        errors.append(error)
        pairs = _pixels(torch.cat([pictures, drawn.pictures], dim=3)[: max(0, shown - len(tiles))])
        tiles += [Tile(pair, f"error {value:.4f}") for pair, value in zip(pairs, error.tolist(), strict=False)]
    heading = (
        f"{int((counts > 0).sum())} of {model.codes} codes used, perplexity {perplexity(counts).item():.0f}; "
        f"error {torch.cat(errors).mean().item():.4f} over {len(views)} pictures"
    )
    sheet = contact_sheet(tiles, columns=COLUMNS, cell=CELL, heading=heading)
    bars = _bars(counts.sort(descending=True).values.cpu().numpy(), sheet.width)
    whole = Image.new("RGB", (sheet.width, sheet.height + bars.height), PAPER)
    whole.paste(sheet, (0, 0))
    whole.paste(bars, (0, sheet.height))
    return whole


def _pixels(pictures: Tensor) -> list[np.ndarray]:
    """Gives (H, W, 3) uint8 of pictures (B, 3, H, W) from 0 to 1."""
    return list((255 * pictures).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def _bars(counts: np.ndarray, width: int) -> Image.Image:
    """Draws how often each code is used (K,), one column of pixels per code or per some codes, on a log scale."""
    image = Image.new("RGB", (width, HEIGHT), PAPER)
    draw, inner = ImageDraw.Draw(image), width - 2 * MARGIN
    places = np.minimum(np.arange(inner) * len(counts) // inner, len(counts) - 1)
    heights = np.log1p(counts[places]) / np.log1p(max(1, counts.max())) * (HEIGHT - 2 * MARGIN)
    for place, height in enumerate(heights.tolist()):
        if height > 0:
            draw.line((MARGIN + place, HEIGHT - MARGIN, MARGIN + place, HEIGHT - MARGIN - height), INK)
    draw.line((MARGIN, HEIGHT - MARGIN, width - MARGIN, HEIGHT - MARGIN), FAINT)
    return image
