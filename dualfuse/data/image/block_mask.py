"""Blockwise masking of image patches (BEiT, algorithm 1, as in the official code)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dualfuse.errors import DualfuseError

TRIES = 10


@dataclass(frozen=True)
class BlockMask:
    """Blockwise masking; the defaults are BEiT's for 14 x 14 patches."""

    patches: int = 75
    """Maximum number of masked patches; most images get that many, some a few fewer."""
    smallest: int = 16
    """Minimum area of a block in patches, unless fewer patches remain to be masked."""
    aspect: float = 0.3
    """Minimum height / width of a block; the maximum is 1 / aspect."""

    def __post_init__(self) -> None:
        """Validate the ranges."""
        if not (self.patches >= 1 and self.smallest >= 1 and 0 < self.aspect <= 1):
            raise DualfuseError(
                f"patches={self.patches}, smallest={self.smallest}, aspect={self.aspect}; the first two must be 1 or "
                "more, aspect above 0 and at most 1"
            )

    def draw(self, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Return a boolean mask (height, width) of a ``grid`` of patches, True for masked patches.

        Raises DualfuseError if all patches could be masked.
        """
        if self.patches >= grid[0] * grid[1]:
            raise DualfuseError(
                f"masking {self.patches} of {grid[0]} x {grid[1]} patches leaves no visible patch; mask fewer "
                "(--task.mask.patches, about 40 % of them, and --task.mask.smallest)"
            )
        mask = np.zeros(grid, dtype=bool)
        while (left := self.patches - int(mask.sum())) > 0:
            block = self._block(mask, left, rng)
            if block is None:
                break
            mask[block] = True
        return mask

    def _block(self, mask: np.ndarray, left: int, rng: np.random.Generator) -> tuple[slice, slice] | None:
        """Return a block that masks 1 to ``left`` more patches; None if ten tries find none."""
        for _ in range(TRIES):
            area = self.smallest + (left - self.smallest) * rng.random()  # between the two, in either order
            aspect = math.exp(rng.uniform(math.log(self.aspect), -math.log(self.aspect)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= mask.shape[0] or width >= mask.shape[1]:
                continue
            top = int(rng.integers(mask.shape[0] - height + 1))
            start = int(rng.integers(mask.shape[1] - width + 1))
            block = slice(top, top + height), slice(start, start + width)
            if 0 < height * width - int(mask[block].sum()) <= left:
                return block
        return None
