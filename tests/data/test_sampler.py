"""The order of samples is a function of seed and step that weighs all sets and samples as requested."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import numpy as np
import pytest

from dualfuse.data.sampler import Draw, MixtureSampler, sample_rng


def first_draws(order: MixtureSampler, count: int) -> list[Draw]:
    steps = (order.draws(step) for step in range(-(-count // order.batch_size)))
    return list(itertools.chain.from_iterable(steps))[:count]


def samples_of(draws: list[Draw]) -> list[tuple[int, int]]:
    return [(draw.source, draw.index) for draw in draws]


@pytest.mark.parametrize("block", [0, 1, 3, 10**12])
@pytest.mark.parametrize("batch", [1, 4, 10, 23])
def test_every_epoch_is_a_new_permutation(batch: int, block: int) -> None:
    lengths = (6, 1, 3)
    stream = samples_of(first_draws(MixtureSampler(lengths, batch, seed=7, block=block), 50))
    epochs = [tuple(stream[first : first + 10]) for first in range(0, 50, 10)]
    everything = [(source, index) for source, length in enumerate(lengths) for index in range(length)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len(set(epochs)) == 5


def test_the_stream_does_not_depend_on_the_batch() -> None:
    small, large = (first_draws(MixtureSampler((20, 5), batch, seed=3), 120) for batch in (4, 30))
    assert samples_of(small) == samples_of(large)
    assert [draw.step for draw in small[:9]] == [0, 0, 0, 0, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("weights", [(), (0.5, 0.2, 0.3)])
def test_steps_are_independent_of_earlier_ones(weights: tuple[float, ...]) -> None:
    forwards = MixtureSampler((40, 7, 11), batch_size=8, seed=5, weights=weights)
    steps = [forwards.draws(step) for step in range(30)]
    backwards = MixtureSampler((40, 7, 11), batch_size=8, seed=5, weights=weights)
    assert [backwards.draws(step) for step in reversed(range(30))] == steps[::-1]
    other = MixtureSampler((40, 7, 11), batch_size=8, seed=6, weights=weights)
    assert samples_of(first_draws(other, 58)) != samples_of(first_draws(forwards, 58))


@pytest.mark.parametrize("block", [0, 64])
@pytest.mark.parametrize("weights", [(), (1.0, 3.0)])
def test_late_steps_are_fast(weights: tuple[float, ...], block: int) -> None:
    order = MixtureSampler((10_000, 300), batch_size=256, seed=1, weights=weights, block=block)
    start = time.perf_counter()
    assert len(order.draws(10**7)) == 256
    assert time.perf_counter() - start < 1  # 10 million steps would take an hour


@pytest.mark.parametrize("weights", [(1.0,), (3.0, 1.0), (0.001, 0.7, 0.299), (0.001,) * 5 + (1.0, 0.3)])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_weighted_shares_are_exact_in_the_long_run(weights: tuple[float, ...], batch: int) -> None:
    lengths = tuple(range(5, 5 + len(weights)))
    order = MixtureSampler(lengths, batch, seed=2, weights=weights)
    counts: Counter[int] = Counter()
    for step in range(500):
        draws = order.draws(step)
        assert len(draws) == batch
        counts.update(draw.source for draw in draws)
        for source, weight in enumerate(weights):
            assert abs(counts[source] - (step + 1) * batch * weight / sum(weights)) < 1 + len(weights) / 2


def test_weighted_sets_go_through_their_own_epochs() -> None:
    lengths, weights = (5, 12), (0.7, 0.3)
    draws = [order for step in range(40) for order in MixtureSampler(lengths, 10, seed=2, weights=weights).draws(step)]
    for source, length in enumerate(lengths):
        stream = Counter(draw.index for draw in draws if draw.source == source)
        full, rest = divmod(stream.total(), length)
        assert set(stream.values()) <= {full, full + 1}
        assert sum(count - full for count in stream.values()) == rest
    patterns = {tuple(draw.source for draw in draws[first : first + 10]) for first in range(0, 400, 10)}
    assert len(patterns) > 20  # where the sets stand in a batch is random


def test_blocks_keep_neighbours_together() -> None:
    length, block, window = 1000, 10, 40
    epoch = np.array([draw.index for draw in first_draws(MixtureSampler((length,), 50, seed=4, block=block), length)])
    for first in range(0, length, window):
        assert len(set(epoch[first : first + window] // block)) == window // block
    assert np.abs(np.diff(epoch)).max() > 500  # blocks come from everywhere
    assert len({tuple(epoch[first : first + 10] // block) for first in range(0, length, 10)}) > 90
    full = np.array([draw.index for draw in first_draws(MixtureSampler((length,), 50, seed=4), length)])
    assert len(set(full[:window] // block)) > 20


PLAIN = [(0, 4), (1, 1), (0, 6), (1, 4), (1, 2), (0, 8)]
MIXED = [(1, 2), (1, 0), (1, 1), (1, 4), (0, 0), (0, 5)]
RANDOM = [849, 871, 291]


def test_order_is_unchanged() -> None:
    """Resumed runs need the order of earlier versions: these numbers may only change on purpose."""
    assert samples_of(list(MixtureSampler((10, 5), 6, seed=1).draws(12345))) == PLAIN
    assert samples_of(list(MixtureSampler((10, 5), 6, seed=1, weights=(1, 2), block=2).draws(12345))) == MIXED
    assert sample_rng(1, Draw(source=0, index=3, step=9)).integers(1000, size=3).tolist() == RANDOM


def test_sample_rng_depends_on_seed_and_draw_only() -> None:
    draws = [Draw(source, index, step) for source in range(3) for index in range(3) for step in range(3)]
    numbers = {(seed, draw): sample_rng(seed, draw).random() for seed in (0, 1) for draw in draws}
    assert len(set(numbers.values())) == 54
    assert numbers == {(seed, draw): sample_rng(seed, draw).random() for seed, draw in numbers}


@pytest.mark.parametrize(
    ("lengths", "settings", "message"),
    [
        ((), {}, "at least one set"),
        ((3, 0), {}, r"sets have \(3, 0\) samples"),
        ((3,), {"batch_size": 0}, "batch_size is 0"),
        ((3,), {"seed": -1}, "seed -1"),
        ((3,), {"block": -1}, "block -1"),
        ((3,), {"weights": (1.0, 2.0)}, "2 weights for 1 sets"),
        ((3, 3), {"weights": (1.0, 0.0)}, "must be positive and finite"),
        ((3, 3), {"weights": (1.0, float("nan"))}, "must be positive and finite"),
    ],
)
def test_invalid_arguments_are_refused(lengths: tuple[int, ...], settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureSampler(lengths, **{"batch_size": 2, "seed": 1} | settings)
    with pytest.raises(ValueError, match="step is -1"):
        MixtureSampler((1,), batch_size=1, seed=1).draws(-1)
