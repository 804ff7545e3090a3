"""What ``dualfuse explain`` does: draws what each word looked at over the image, a tile for each word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualfuse import distributed as dist
from dualfuse.convert.load import load
from dualfuse.data.image.image_grid import Tile, image_grid
from dualfuse.errors import DualfuseError
from dualfuse.inference.explain import Explanation, Method, explain

COLUMNS, CELL = 6, 192
HOT = (255, 90, 0)
STRONGEST = 0.8  # how much of the colour the hottest point has


def explain_command(
    model: Path | str,
    *,
    image: Sequence[Path],
    text: str,
    save_image: Path = Path("explain.png"),
    method: Method = "gradient",
) -> tuple[Explanation, ...]:
    """Print what a ``model`` that :func:`load` knows answers, and draws on ``save_image`` what each word looked at.

    The device is the GPU if there is one.
    """
    if save_image.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise DualfuseError(f"the sheet {save_image} must be called .png or .jpg")
    loaded = load(model, device=dist.device())
    explanations = explain(loaded, tuple(image), text, method=method)
    save_image.parent.mkdir(parents=True, exist_ok=True)
    heat_map_grid(explanations, f"{method}: {text}").save(save_image)
    print(f"{explanations[0].answer}; the sheet is {save_image}")
    return explanations


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
