"""Random erasing (arXiv 1708.04896): a rectangle of an image is replaced by noise."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

AREA = (0.02, 1 / 3)
"""Range of the share of the image."""
ASPECT = (0.3, 1 / 0.3)
"""Range of height / width."""
TRIES = 10


def erase(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return a normalized ``image`` (3, H, W) with a random rectangle of standard normal noise.

    The area and the logarithm of the aspect are uniform; after ten rectangles that do not fit, the image is returned
    unchanged.
    """
    height, width = image.shape[1:]
    for _ in range(TRIES):
        area = rng.uniform(*AREA) * height * width
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
            noise = rng.standard_normal((image.shape[0], rows, columns), dtype=np.float32)
            erased = image.clone()
            erased[:, top : top + rows, left : left + columns] = torch.from_numpy(noise)
            return erased
    return image
