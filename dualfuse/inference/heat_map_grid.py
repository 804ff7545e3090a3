"""Draws explanations as heat maps over the image, one tile per word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualfuse.data.image.image_grid import Tile, image_grid
from dualfuse.inference.explain import Explanation

COLUMNS, CELL = 6, 192
HOT = (255, 90, 0)
STRONGEST = 0.8  # how much of the colour the hottest point has


def heat_map_grid(explanations: Sequence[Explanation], heading: str = "") -> Image.Image:
    """Draw each image, and then one tile for each word: grey, and the warmer the more the word looked there.

    Every tile has a scale of its own, from its coldest to its hottest patch.
    """
    tiles = []
    for each in explanations:
        tiles.append(Tile(each.pixels, each.answer))
        tiles += [Tile(heated(each.pixels, heat), word) for word, heat in zip(each.words, each.heat, strict=True)]
    return image_grid(tiles, columns=COLUMNS, cell=CELL, heading=heading)


def heated(pixels: np.ndarray, heat: Tensor) -> np.ndarray:
    """Return uint8 (H, W, 3): ``pixels`` in grey, coloured by a map ``heat`` (rows, columns) of patches."""
    cold, hot = heat.min(), heat.max()
    share = (heat - cold) / (hot - cold) if hot > cold else torch.zeros_like(heat)
    size = pixels.shape[1], pixels.shape[0]
    smooth = np.asarray(Image.fromarray(share.float().numpy()).resize(size, Image.Resampling.BILINEAR))
    weight = STRONGEST * smooth.clip(0, 1)[..., None]
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32)[..., None]
    return ((1 - weight) * grey + weight * np.array(HOT, dtype=np.float32)).round().astype(np.uint8)
