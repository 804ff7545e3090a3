"""Which patches of an image are hidden: whole blocks of them (BEiT, algorithm 1, as it was released)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dualfuse.errors import DualfuseError

TRIES = 10


@dataclass(frozen=True)
class BlockMask:
    """How much is hidden, in what blocks; the defaults are BEiT's for 14 x 14 patches."""

    patches: int = 75
    """Most patches that are hidden; most images get that many, some a few less."""
    smallest: int = 16
    """Least area of a block in patches, unless fewer are left to hide."""
    aspect: float = 0.3
    """Least height / width of a block; the greatest is 1 / aspect."""

    def __post_init__(self) -> None:
        """Refuse numbers that hide nothing."""
        if not (self.patches >= 1 and self.smallest >= 1 and 0 < self.aspect <= 1):
            raise DualfuseError(
                f"patches={self.patches}, smallest={self.smallest}, aspect={self.aspect}; give at least 1, at least 1, "
                "and more than 0 up to 1"
            )

    def draw(self, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Return a mask (height, width) of a ``grid`` of patches, True where one is hidden.

        Raises DualfuseError where that could leave nothing to see.
        """
        if self.patches >= grid[0] * grid[1]:
            raise DualfuseError(
                f"to hide {self.patches} of {grid[0]} x {grid[1]} patches leaves nothing to see; hide fewer "
                "(--task.mask.patches, about 40 %, and --task.mask.smallest)"
            )
        mask = np.zeros(grid, dtype=bool)
        while (left := self.patches - int(mask.sum())) > 0:
            block = self._block(mask, left, rng)
            if block is None:
                break
            mask[block] = True
        return mask

    def _block(self, mask: np.ndarray, left: int, rng: np.random.Generator) -> tuple[slice, slice] | None:
        """Find a block that hides between 1 and ``left`` more patches; None if ten tries did not."""
        for _ in range(TRIES):
            area = self.smallest + (left - self.smallest) * rng.random()  # between both, whichever is greater
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
