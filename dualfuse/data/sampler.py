"""Which sample comes at which step: a pure function of (seed, step).

The stream is endless and closed in form: any step is found without those before it, so a run resumes from its seed and
its step alone, on any number of ranks, workers and micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dualfuse.errors import DualfuseError

WINDOW = 4  # blocks that are shuffled together: few enough for a page cache, enough to mix neighbours
EPOCH, MIXTURE, SAMPLE = 1, 2, 3  # what a random stream is for; keeps the streams of one seed apart


@dataclass(frozen=True)
class Draw:
    """One place in the training stream: sample ``index`` of set ``source``, seen at ``step``."""

    source: int
    index: int
    step: int


class MixtureSampler:
    """The endless order of training samples over one or more sets.

    Without ``weights`` all sets are one, and each epoch is a full permutation of it: every sample once, each epoch in
    another order. With ``weights`` every batch holds its share of each set, rounded so that the totals stay within a
    few samples of the exact shares for ever, and every set goes through its own epochs. ``block`` > 0 shuffles blocks
    of that many neighbours, and then single samples within ``WINDOW`` blocks, so that a disk reads forwards.
    """

    def __init__(
        self, lengths: tuple[int, ...], batch: int, seed: int, weights: tuple[float, ...] = (), block: int = 0
    ) -> None:
        """``lengths`` are the numbers of samples of the sets, ``batch`` is the samples per step over all ranks."""
        if not lengths or min(lengths) < 1:
            raise DualfuseError(f"the sets have {lengths} samples; at least one set, and one sample in each, is needed")
        if batch < 1 or seed < 0 or block < 0:
            raise DualfuseError(
                f"batch is {batch}, seed {seed}, block {block}; batch must be 1 or more, the others 0 or more"
            )
        if weights and len(weights) != len(lengths):
            raise DualfuseError(f"{len(weights)} weights for {len(lengths)} sets; give one for each set, or none")
        if not all(0 < weight < float("inf") for weight in weights):
            raise DualfuseError(
                f"weights are {weights}; each must be a positive number (leave out a set that gets none)"
            )
        self.lengths, self.batch, self.seed = lengths, batch, seed
        self._weights = tuple(map(Fraction, weights))
        self._block = block
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}

    def draws(self, step: int) -> tuple[Draw, ...]:
        """Return the samples of one step on all ranks, in order; rank r of W takes the r-th of W equal parts."""
        if step < 0:
            raise DualfuseError(f"step is {step}; the first is 0")
        source, index = self._mixed(step) if self._weights else self._joined(step)
        return tuple(Draw(s, i, step) for s, i in zip(source.tolist(), index.tolist(), strict=True))

    def _joined(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return set and number of each sample of a step, with all sets as one."""
        place = self._shuffled(0, sum(self.lengths), step * self.batch, self.batch)
        starts = np.cumsum((0, *self.lengths))
        source = np.searchsorted(starts, place, side="right") - 1
        return source, place - starts[source]

    def _mixed(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return set and number of each sample of a step, with each set at its weight."""
        before = _shares(step * self.batch, self._weights)
        after = _shares((step + 1) * self.batch, self._weights)
        counts = [last - first for first, last in zip(before, after, strict=True)]
        source = np.repeat(np.arange(len(counts)), counts)
        runs = zip(self.lengths, before, counts, strict=True)
        index = np.concatenate([self._shuffled(number, *run) for number, run in enumerate(runs)])
        slots = np.random.default_rng((MIXTURE, self.seed, step)).permutation(self.batch)
        return source[slots], index[slots]

    def _shuffled(self, stream: int, length: int, first: int, count: int) -> np.ndarray:
        """Return ``count`` numbers from place ``first`` of the endless run of epochs over ``length`` samples."""
        parts = [np.empty(0, np.int64)]
        while count:
            epoch, offset = divmod(first, length)
            part = self._epoch(stream, length, epoch)[offset : offset + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return np.concatenate(parts)

    def _epoch(self, stream: int, length: int, epoch: int) -> np.ndarray:
        """Return the order (length,) of one epoch; the last one asked for is kept for each stream."""
        if stream not in self._epochs or self._epochs[stream][0] != epoch:
            rng = np.random.default_rng((EPOCH, self.seed, stream, epoch))
            self._epochs[stream] = epoch, _permutation(length, self._block, rng)
        return self._epochs[stream][1]


def sample_rng(seed: int, draw: Draw) -> np.random.Generator:
    """Return a sample's own random state: the same wherever and by whichever process it is read."""
    return np.random.default_rng((SAMPLE, seed, draw.step, draw.source, draw.index))


def _permutation(length: int, block: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random order (length,); with ``block``, one that keeps neighbours within ``WINDOW`` blocks together."""
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
    """Divide ``total`` places among sets by weight, so that no share shrinks when ``total`` grows.

    Each set in turn takes its rounded part of what those before it left; what is left never shrinks either. (Rounding
    every share, or every cumulative weight, by itself could take a place back from a set of small weight.)
    """
    shares, left, weight_left = [], total, sum(weights, Fraction(0))
    for weight in weights:
        share = round(left * weight / weight_left)
        shares.append(share)
        left, weight_left = left - share, weight_left - weight
    return tuple(shares)
