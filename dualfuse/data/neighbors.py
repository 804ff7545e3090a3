"""Batches of neighbors: the order of an epoch in which similar samples meet (GRIT-VLP, arXiv 2208.04060)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The most similar other samples of each sample over all sets, and the size of the groups that they form."""

    table: np.ndarray
    """Numbers (N, M) of the neighbors in the concatenated sets, nearest first; -1: none."""
    size: int
    """Samples in a group."""

    def regroup(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a permutation (N,) of the same samples in which groups of neighbors stand together.

        In the order of ``order``, each sample that is not yet in a group begins one, which its nearest neighbors that
        are not yet in a group fill. The groups are shuffled, because the last ones have few neighbors left.
        """
        placed, groups = np.zeros(len(order), dtype=bool), list[np.ndarray]()
        for first in order.tolist():
            if placed[first]:
                continue
            placed[first] = True
            near = self.table[first]
            near = near[near >= 0]
            near = near[~placed[near]][: self.size - 1]
            placed[near] = True
            groups.append(np.concatenate([[first], near]))
        return np.concatenate([groups[number] for number in rng.permutation(len(groups))])
