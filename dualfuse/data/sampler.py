"""The order of training samples as a pure function of (seed, step).

The stream is endless and in closed form: a step is computed without the steps before it, so a run resumes from its seed
and step alone, on any number of ranks, workers and micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dualfuse.data.neighbors import Neighbors
from dualfuse.errors import DualfuseError

WINDOW = 4  # blocks shuffled together: few enough for the page cache, enough to mix neighbours
EPOCH, MIXTURE, SAMPLE = 1, 2, 3  # purposes of random streams, which differ for one seed


@dataclass(frozen=True)
class Draw:
    """One position in the training stream: sample ``index`` of set ``source`` at ``step``."""

    source: int
    index: int
    step: int


class MixtureSampler:
    """The endless order of training samples over one or more sets.

    Without ``weights`` all sets are concatenated, and each epoch is a new permutation of all samples. With ``weights``
    every batch holds its share of each set, rounded so that the totals always stay within a few samples of the exact
    shares, and every set has its own epochs. With ``block`` > 0, blocks of that many neighbours are shuffled first,
    then single samples within ``WINDOW`` blocks, so that a disk reads sequentially.
    """

    def __init__(
        self,
        lengths: tuple[int, ...],
        batch_size: int,
        seed: int,
        weights: tuple[float, ...] = (),
        block: int = 0,
        neighbors: Neighbors | None = None,
    ) -> None:
        """``lengths`` are the numbers of samples of the sets, ``batch_size`` the samples per step on all ranks.

        With ``neighbors``, which exclude ``weights``, the permutation of an epoch is one of groups of neighbors.
        """
        if not lengths or min(lengths) < 1:
            raise DualfuseError(f"the sets have {lengths} samples; at least one set, and one sample in each, is needed")
        if batch_size < 1 or seed < 0 or block < 0:
            raise DualfuseError(
                f"batch_size is {batch_size}, seed {seed}, block {block}; they must be at least 1, 0 and 0"
            )
        if weights and len(weights) != len(lengths):
            raise DualfuseError(f"{len(weights)} weights for {len(lengths)} sets; give one for each set, or none")
        if not all(0 < weight < float("inf") for weight in weights):
            raise DualfuseError(
                f"weights are {weights}; each must be positive and finite (remove a set that should get no samples)"
            )
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self._weights = tuple(map(Fraction, weights))
        self._block, self._neighbors = block, neighbors
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}

    def draws(self, step: int) -> tuple[Draw, ...]:
        """Return the draws of one step on all ranks, in order."""
        if step < 0:
            raise DualfuseError(f"step is {step}; the first is 0")
        source, index = self._weighted(step) if self._weights else self._concatenated(step)
        return tuple(Draw(s, i, step) for s, i in zip(source.tolist(), index.tolist(), strict=True))

    def _concatenated(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the set and the index of each sample of a step, over all sets concatenated."""
        position = self._shuffled(0, sum(self.lengths), step * self.batch_size, self.batch_size)
        starts = np.cumsum((0, *self.lengths))
        source = np.searchsorted(starts, position, side="right") - 1
        return source, position - starts[source]

    def _weighted(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the set and the index of each sample of a step, each set at its weight."""
        before = _shares(step * self.batch_size, self._weights)
        after = _shares((step + 1) * self.batch_size, self._weights)
        counts = [last - first for first, last in zip(before, after, strict=True)]
        source = np.repeat(np.arange(len(counts)), counts)
        runs = zip(self.lengths, before, counts, strict=True)
        index = np.concatenate([self._shuffled(number, *run) for number, run in enumerate(runs)])
        slots = np.random.default_rng((MIXTURE, self.seed, step)).permutation(self.batch_size)
        return source[slots], index[slots]

    def _shuffled(self, stream: int, length: int, first: int, count: int) -> np.ndarray:
        """Return ``count`` indices, beginning at position ``first`` of endless epochs over ``length`` samples."""
        parts = [np.empty(0, np.int64)]
        while count:
            epoch, offset = divmod(first, length)
            part = self._epoch(stream, length, epoch)[offset : offset + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return np.concatenate(parts)

    def _epoch(self, stream: int, length: int, epoch: int) -> np.ndarray:
        """Return the permutation (length,) of one epoch; the last one of each stream is cached."""
        if stream not in self._epochs or self._epochs[stream][0] != epoch:
            rng = np.random.default_rng((EPOCH, self.seed, stream, epoch))
            order = _permutation(length, self._block, rng)
            self._epochs[stream] = epoch, order if self._neighbors is None else self._neighbors.regroup(order, rng)
        return self._epochs[stream][1]


def sample_rng(seed: int, draw: Draw) -> np.random.Generator:
    """Return the random state of a draw, the same in whichever process the sample is read."""
    return np.random.default_rng((SAMPLE, seed, draw.step, draw.source, draw.index))


def _permutation(length: int, block: int, rng: np.random.Generator) -> np.ndarray:
    """Return a permutation (length,); with ``block``, neighbours stay within ``WINDOW`` shuffled blocks."""
    if not block:
        return rng.permutation(length)
    block = min(block, length)
    starts = rng.permutation(-(-length // block)) * block
    order = (starts[:, None] + np.arange(block)).ravel()
    order = order[order < length]  # one block may be short
    window = WINDOW * block
    windows = np.full((-(-length // window), window), -1)
    windows.flat[:length] = order
    order = rng.permuted(windows, axis=1).ravel()
    return order[order >= 0]


def _shares(total: int, weights: tuple[Fraction, ...]) -> tuple[int, ...]:
    """Divide ``total`` samples among sets by weight, so that no share shrinks when ``total`` grows.

    Each set in turn takes its rounded part of what the sets before it left; the remainder never shrinks either.
    (Rounding every share, or every cumulative weight, independently could shrink the share of a set of small weight.)
    """
    shares, left, weight_left = [], total, sum(weights, Fraction(0))
    for weight in weights:
        share = round(left * weight / weight_left)
        shares.append(share)
        left, weight_left = left - share, weight_left - weight
    return tuple(shares)
