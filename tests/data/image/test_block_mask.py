"""The mask of blocks, against the statistics of 4,000 recorded ones and against the rule written down naively."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from dualfuse.data.image.block_mask import BlockMask

GRID = (14, 14)


def drawn(number: int) -> np.ndarray:
    return np.stack([BlockMask().draw(GRID, np.random.default_rng(seed)) for seed in range(number)])


def naive(seed: int) -> np.ndarray:
    """Cell by cell, with another generator."""
    source = random.Random(seed)
    hidden: set[tuple[int, int]] = set()
    while len(hidden) < 75:
        left = 75 - len(hidden)
        for _ in range(10):
            area, aspect = source.uniform(16, left), math.exp(source.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= 14 or width >= 14:
                continue
            top, start = source.randint(0, 14 - height), source.randint(0, 14 - width)
            new = {(top + y, start + x) for y in range(height) for x in range(width)} - hidden
            if 0 < len(new) <= left:
                hidden |= new
                break
        else:
            break
    mask = np.zeros(GRID, dtype=bool)
    mask[tuple(np.array(sorted(hidden)).T)] = True
    return mask


def test_statistics_equal_those_of_the_official_code() -> None:
    masks = drawn(4000)
    counts = masks.sum((1, 2))
    assert counts.max() == 75 and 60 <= counts.min() <= 66
    assert counts.mean() == pytest.approx(74.46, abs=0.1)
    assert (counts == 75).mean() == pytest.approx(0.651, abs=0.03)  # four standard errors of both samples
    corners = masks[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean()
    assert corners == pytest.approx(0.0437, abs=0.014)
    assert masks[:, 7, 7].mean() == pytest.approx(0.708, abs=0.04)
    assert masks[:, 0].mean() == pytest.approx(0.133, abs=0.02)


def test_masking_rates_equal_those_of_a_naive_implementation() -> None:
    ours, theirs = drawn(3000), np.stack([naive(seed) for seed in range(3000)])
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 0.06  # 4.6 standard errors at the centre
    assert np.abs(ours.mean(0) - theirs.mean(0)).mean() < 0.015
    histograms = [np.bincount(masks.sum((1, 2)), minlength=76) / len(masks) for masks in (ours, theirs)]
    assert np.abs(histograms[0] - histograms[1]).max() < 0.05


def test_masks_depend_on_the_random_state_only() -> None:
    first, again, other = (BlockMask().draw(GRID, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_masks_of_other_grids() -> None:
    rule = BlockMask(patches=6, smallest=2)
    masks = np.stack([rule.draw((4, 5), np.random.default_rng(seed)) for seed in range(300)])
    assert masks.shape == (300, 4, 5) and masks.sum((1, 2)).max() == 6 and masks.any((1, 2)).all()
    assert masks.any(0).all()


def test_blocks_are_smaller_than_the_grid() -> None:
    rule, nothing = BlockMask(patches=4, smallest=4), np.zeros((2, 4), dtype=bool)
    blocks = [rule._block(nothing, 4, np.random.default_rng(seed)) for seed in range(200)]
    shapes = {nothing[block].shape for block in blocks if block is not None}
    assert shapes <= {(1, 2), (1, 3)} and shapes


def test_masks_of_all_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="75 of 4 x 4 patches"):
        BlockMask().draw((4, 4), np.random.default_rng(0))
    with pytest.raises(ValueError, match="smallest=0"):
        BlockMask(smallest=0)
