"""Batches are the same for any number of workers and ranks, and every skipped sample is reported."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import signal
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dualfuse.data import loader
from dualfuse.data.loader import LoadedBatch, SampleReader, Skipped, evaluation_batches, training_batches
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.sampler import Draw, MixtureSampler, sample_rng
from dualfuse.data.shards.shards import Shards

SEED = 11


def make_set(folder: Path, name: str, texts: Sequence[str]) -> Shards:
    """A set whose samples have these texts; "!" makes a sample that has no image."""
    with tarfile.open(folder / f"{name}.tar", "w") as tar:
        for number, text in enumerate(texts):
            info = tarfile.TarInfo(f"{number:03}.{'txt' if text == '!' else 'jpg'}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return Shards.open(folder / f"{name}.tar")


def read(sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
    noise = torch.from_numpy(rng.normal(size=3))
    if sample.image == b"value":
        raise ValueError("no such answer")
    if sample.image == b"file":
        raise FileNotFoundError("gone")
    if sample.image == b"bug":
        raise KeyError("a mistake of the programmer")
    return {"key": sample.key, "noise": noise}


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "key": [example["key"] for example in examples],
        "noise": torch.stack([example["noise"] for example in examples]),
    }


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Shards, ...]:
    return make_set(tmp_path, "a", ["x"] * 13), make_set(tmp_path, "b", ["x", "!", "x", "x", "value", "file", "x"])


def take(sets: tuple[Shards, ...], count: int, **settings: int) -> list[LoadedBatch]:
    sampler = MixtureSampler(tuple(map(len, sets)), batch_size=8, seed=SEED, weights=(1.0,) * len(sets))
    options = {"start": 0, "rank": 0, "world": 1, "micro_batch": 0, "num_workers": 0} | settings
    return list(itertools.islice(training_batches(SampleReader(sets, read, SEED), sampler, collate, **options), count))


def contents(loaded_batches: Sequence[LoadedBatch]) -> list[tuple[int, str, tuple[float, ...]]]:
    return [
        (loaded_batch.step, key, tuple(noise.tolist()))
        for loaded_batch in loaded_batches
        for key, noise in zip(loaded_batch.batch["key"], loaded_batch.batch["noise"], strict=True)
    ]


def test_batches_hold_the_examples_of_the_sampler(tmp_path: Path) -> None:
    sets = make_set(tmp_path, "a", ["x"] * 13), make_set(tmp_path, "b", ["x"] * 3)
    sampler = MixtureSampler((13, 3), batch_size=8, seed=SEED, weights=(1.0, 1.0))
    expected = []
    for draw in itertools.chain.from_iterable(sampler.draws(step) for step in range(6)):
        noise = sample_rng(SEED, draw).normal(size=3)
        expected.append((draw.step, f"{'ab'[draw.source]}/{draw.index:03}", tuple(noise.tolist())))
    assert contents(take(sets, 6)) == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(sets: tuple[Shards, ...], workers: int) -> None:
    alone, helped = take(sets, 12, micro_batch=4), take(sets, 12, micro_batch=4, num_workers=workers)
    assert contents(alone) == contents(helped)
    assert [loaded_batch.skipped for loaded_batch in alone] == [loaded_batch.skipped for loaded_batch in helped]
    assert any(loaded_batch.skipped for loaded_batch in alone)


@pytest.mark.parametrize("world", [2, 4])
def test_batches_do_not_depend_on_the_number_of_ranks(sets: tuple[Shards, ...], world: int) -> None:
    parts = [take(sets, 6, rank=rank, world=world) for rank in range(world)]
    together = [
        contents([loaded_batch]) for loaded_batches in zip(*parts, strict=True) for loaded_batch in loaded_batches
    ]
    assert list(itertools.chain.from_iterable(together)) == contents(take(sets, 6))
    assert all(len(part) == 8 // world for part in together)


def test_micro_batches_are_parts_of_the_batch(sets: tuple[Shards, ...]) -> None:
    pieces = take(sets, 12, micro_batch=2, world=2, rank=1)
    assert [loaded_batch.step for loaded_batch in pieces] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    others = take(sets, 12, micro_batch=2, world=2, rank=0)
    together = [contents([loaded_batch]) for both in zip(others, pieces, strict=True) for loaded_batch in both]
    assert list(itertools.chain.from_iterable(together)) == contents(take(sets, 6))


def test_ranks_have_the_same_samples_side_by_side(sets: tuple[Shards, ...]) -> None:
    """Micro-batches of one on each of four ranks are those of two on two, and of four on one."""
    for world in (2, 4):
        ranks = [take(sets, 6, micro_batch=4 // world, rank=rank, world=world) for rank in range(world)]
        for alone, parts in zip(take(sets, 6, micro_batch=4), zip(*ranks, strict=True), strict=True):
            assert list(itertools.chain.from_iterable(contents([part]) for part in parts)) == contents([alone])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_start_at_any_step(sets: tuple[Shards, ...], workers: int) -> None:
    assert contents(take(sets, 3, start=5, num_workers=workers)) == contents(take(sets, 8))[5 * 8 :]


def test_the_next_sample_replaces_a_broken_one(sets: tuple[Shards, ...]) -> None:
    reader = SampleReader(sets, read, SEED)
    draw = Draw(source=1, index=4, step=3)
    example, skipped = reader[draw]
    assert example["key"] == "b/006"
    assert example["noise"].tolist() == sample_rng(SEED, draw).normal(size=3).tolist()
    assert skipped == (
        Skipped("b/004", "ValueError: no such answer", "b/006"),
        Skipped("b/005", "FileNotFoundError: gone", "b/006"),
    )
    assert reader[Draw(source=1, index=2, step=3)][1] == ()


def test_the_first_sample_replaces_a_broken_last_one(tmp_path: Path) -> None:
    reader = SampleReader((make_set(tmp_path, "c", ["x", "x", "!"]),), read, SEED)
    example, (skip,) = reader[Draw(source=0, index=2, step=0)]
    assert example["key"] == skip.replacement == "c/000"
    assert skip.key == "c/002" and skip.reason.startswith("no image")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_of_broken_samples_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(loader, "MAX_CONSECUTIVE_BROKEN", 5)
    message = r"^set 0 is broken: none of 5 samples in a row .* first: d/00\d: no image"
    with pytest.raises(ValueError, match=message):
        take((make_set(tmp_path, "d", ["x"] + ["!"] * 30),), 9, num_workers=workers)
    with pytest.raises(ValueError, match="none of 2 samples in a row"):
        take((make_set(tmp_path, "e", ["!", "value"]),), 1)


def test_programming_errors_are_not_broken_samples(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a mistake of the programmer"):
        take((make_set(tmp_path, "f", ["bug", "x"]),), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_every_sample_once(tmp_path: Path, workers: int) -> None:
    shards = make_set(tmp_path, "g", ["x"] * 7)
    options = {"num_workers": workers, "exclude_broken": False}
    found = list(evaluation_batches(shards, read, collate, batch_size=3, **options))
    assert [loaded_batch.batch["key"] for loaded_batch in found] == [
        ["g/000", "g/001", "g/002"],
        ["g/003", "g/004", "g/005"],
        ["g/006"],
    ]
    noise = torch.cat([loaded_batch.batch["noise"] for loaded_batch in found])
    whole = list(evaluation_batches(shards, read, collate, batch_size=100, **options))
    assert torch.equal(torch.cat([loaded_batch.batch["noise"] for loaded_batch in whole]), noise)
    assert len(noise.unique(dim=0)) == 7


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_stops_at_a_broken_sample(sets: tuple[Shards, ...], workers: int) -> None:
    loaded_batches = evaluation_batches(sets[1], read, collate, batch_size=1, num_workers=workers, exclude_broken=False)
    with pytest.raises(BrokenSample, match=r"^b/001: no image") as error:
        list(loaded_batches)
    assert error.value.key == "b/001"


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_evaluation_reports_excluded_samples(tmp_path: Path, batch: int) -> None:
    shards = make_set(tmp_path, "h", ["!", "x", "x", "value", "file", "x", "x", "!", "!"])
    found = list(evaluation_batches(shards, read, collate, batch_size=batch, num_workers=0, exclude_broken=True))
    assert [key for loaded_batch in found for key in loaded_batch.batch["key"]] == ["h/001", "h/002", "h/005", "h/006"]
    skipped = [skip for loaded_batch in found for skip in loaded_batch.skipped]
    assert [skip.key for skip in skipped] == ["h/000", "h/003", "h/004", "h/007", "h/008"]
    assert skipped[1] == Skipped("h/003", "ValueError: no such answer", "")
    with pytest.raises(ValueError, match="all samples are broken; the first: i/000: no image"):
        shards = make_set(tmp_path, "i", ["!"] * 3)
        list(evaluation_batches(shards, read, collate, batch_size=batch, num_workers=0, exclude_broken=True))


def test_workers_end_with_the_iterator(sets: tuple[Shards, ...]) -> None:
    sampler = MixtureSampler((13, 7), batch_size=4, seed=SEED)
    options = {"start": 0, "rank": 0, "world": 1, "micro_batch": 0, "num_workers": 2}
    before = torch.random.get_rng_state()
    batches = training_batches(SampleReader(sets, read, SEED), sampler, collate, **options)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []
    batches = training_batches(SampleReader(sets, read, SEED), sampler, collate, **options)
    next(batches)
    del batches
    assert multiprocessing.active_children() == []
    assert torch.equal(torch.random.get_rng_state(), before)  # reading must not move the model's randomness


def test_workers_leave_ctrl_c_to_the_main_process(sets: tuple[Shards, ...]) -> None:
    sampler = MixtureSampler((13, 7), batch_size=4, seed=SEED)
    options = {"start": 0, "rank": 0, "world": 1, "micro_batch": 0, "num_workers": 2}
    batches = training_batches(SampleReader(sets, read, SEED), sampler, collate, **options)
    started = list(itertools.islice(batches, 4))
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)  # as the terminal does; a main process that saves first needs them alive
    more = list(itertools.islice(batches, 20))
    batches.close()
    assert [loaded_batch.step for loaded_batch in started + more] == list(range(24))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"world": 3}, "batch of 8 cannot be divided by 3 processes"),
        ({"world": 2, "micro_batch": 3}, "batch of 4 cannot be divided by 3 samples per micro-batch"),
        ({"micro_batch": -1}, "by -1 samples per micro-batch"),
        ({"world": 2, "rank": 2}, "rank is 2 of 2"),
    ],
)
def test_invalid_arguments_are_refused_immediately(
    sets: tuple[Shards, ...], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        take(sets, 0, **settings)
    with pytest.raises(ValueError, match="batch_size is 0"):
        evaluation_batches(sets[0], read, collate, batch_size=0, num_workers=0, exclude_broken=False)
    options = {"start": 0, "rank": 0, "world": 1, "micro_batch": 0, "num_workers": 0}
    with pytest.raises(ValueError, match=r"sets of \(5,\) samples, the reader has sets of \(13, 7\)"):
        training_batches(SampleReader(sets, read, SEED), MixtureSampler((5,), batch_size=1, seed=1), collate, **options)
