"""Batches for training and for evaluation, from worker processes, with a ledger of what was left out.

What a batch holds depends on the order, the seed and the step alone: not on the number of workers, not on the number
of ranks. A broken sample is never left out in silence: every one is reported with the batch it was meant for.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dualfuse.data.sample import BrokenSample, ChangedFile, Sample
from dualfuse.data.sampler import Draw, MixtureSampler, sample_rng
from dualfuse.errors import DualfuseError

Example = Mapping[str, Any]  # one sample as tensors and numbers; each task's TypedDict says which
Batch = Mapping[str, Any]  # many rows; each task's TypedDict says which
Read = Callable[[Sample, np.random.Generator], Example]
Collate = Callable[[Sequence[Any]], Batch]  # Any: the rows of one task

MAX_CONSECUTIVE_BROKEN = (
    100  # broken samples side by side that are taken for accidents; more mean that the set is broken
)


class Samples(Protocol):
    """A set whose samples are read by number: shards, or a text corpus."""

    def __len__(self) -> int:
        """The number of samples, broken ones included."""
        ...

    def __getitem__(self, index: int, /) -> Sample:
        """Read one; raises ``BrokenSample`` for one that cannot be used."""
        ...

    def key(self, index: int) -> str:
        """Return the key of a sample, which no other of the set has; reads nothing."""
        ...


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out: its key, why, and the key of the sample in its place ("" in evaluation)."""

    key: str
    reason: str
    replacement: str


@dataclass(frozen=True)
class LoadedBatch:
    """One batch, the step it belongs to (in evaluation: its number), and what was left out of it."""

    step: int
    batch: Batch
    skipped: tuple[Skipped, ...] = ()

    def pin_memory(self) -> LoadedBatch:
        """Return it with tensors in memory from which a GPU reads by itself; torch's loader calls this, in a thread."""
        pinned = {
            name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in self.batch.items()
        }
        return replace(self, batch=pinned)


@dataclass(frozen=True)
class SampleReader(Dataset[tuple[Example, tuple[Skipped, ...]]]):
    """Reads training samples: ``reader[draw]`` is the row of that draw, and what had to be skipped for it.

    In the place of a broken sample comes the next of its set in file order, read with the random state of the
    draw, so that batches keep their size on every rank. ``read`` turns a sample into a row; whatever ValueError
    (``BrokenSample`` is one) or OSError it raises makes the sample a broken one, but for ``ChangedFile``, which ends
    the run.
    """

    sets: tuple[Samples, ...]
    read: Read
    seed: int

    def _read(self, source: int, sample: Sample, rng: np.random.Generator) -> Example:
        return self.read(replace(sample, source=source), rng)

    def __getitem__(self, draw: Draw) -> tuple[Example, tuple[Skipped, ...]]:
        """Return the row and the skips; DualfuseError when the next ``PATIENCE`` samples, or all, are broken."""
        shards = self.sets[draw.source]
        broken: list[BrokenSample] = []
        for ahead in range(min(MAX_CONSECUTIVE_BROKEN, len(shards))):
            number = (draw.index + ahead) % len(shards)
            try:
                row = _row(shards, number, partial(self._read, draw.source), sample_rng(self.seed, draw))
            except BrokenSample as error:
                broken.append(error)
                continue
            replacement = shards.key(number)
            return row, tuple(Skipped(error.key, error.reason, replacement) for error in broken)
        raise DualfuseError(
            f"set {draw.source} is broken: none of {len(broken)} samples in a row from {shards.key(draw.index)} can be "
            f"used; the first: {'; '.join(map(str, broken[:3]))}. Repair the set or take it out of the recipe's data"
        )


def training_batches(
    reader: SampleReader,
    order: MixtureSampler,
    collate: Collate,
    *,
    start: int,
    rank: int,
    world: int,
    micro_batch: int,
    workers: int,
) -> Iterator[LoadedBatch]:
    """Return the batches of one rank from step ``start`` on, without end, one per micro-batch.

    The micro-batches of a step (0: one of all the rank's rows) follow each other and say its number. The n-th ones of
    all ranks, in rank order, are the n-th part of the global batch of ``order``: the same samples side by side for any
    number of ranks whose micro-batches are as large together. ``workers`` processes read ahead (0: none); they end when
    the iterator is closed or forgotten. Raises DualfuseError, at once, for a batch that cannot be divided.
    """
    lengths = tuple(len(shards) for shards in reader.sets)
    if order.lengths != lengths:
        raise DualfuseError(f"the order is over sets of {order.lengths} samples, the reader has sets of {lengths}")
    if not 0 <= rank < world:
        raise DualfuseError(f"rank is {rank} of {world}; ranks count from 0")
    parts = places(order.batch, rank, world, micro_batch)
    chunks = ((step, tuple(draws[place] for place in part)) for step, draws in _steps(order, start) for part in parts)
    return _deliveries(_Worker(reader, collate), chunks, workers)


def places(batch: int, rank: int, world: int, micro_batch: int) -> tuple[range, ...]:
    """Return the places in a global batch that one rank takes, one range per micro-batch.

    Raises DualfuseError for a batch that cannot be divided.
    """
    local = _divide(batch, by=world, what="processes")
    micro = micro_batch or local
    _divide(local, by=micro, what="samples per micro-batch")
    return tuple(range(first, first + micro) for first in range(rank * micro, batch, world * micro))


def evaluation_batches(
    shards: Samples, read: Read, collate: Collate, *, batch: int, workers: int, exclude_broken: bool
) -> Iterator[LoadedBatch]:
    """Return every sample once, in file order, ``batch`` rows at a time.

    A broken sample raises ``BrokenSample``, which names it; with ``exclude_broken`` it is left out and reported. A
    batch of which nothing is left is not delivered: its exclusions come with a neighbour. The random state a row is
    read with depends on its number alone.
    """
    if batch < 1:
        raise DualfuseError(f"batch is {batch}; at least 1 row at a time")
    starts = range(0, len(shards), batch)
    chunks = ((step, range(first, min(first + batch, len(shards)))) for step, first in enumerate(starts))
    worker = _Worker(_Once(shards, read, exclude_broken), collate)
    return _with_rows(_deliveries(worker, chunks, workers))


@dataclass(frozen=True)
class _Once(Dataset[tuple[Example | None, tuple[Skipped, ...]]]):
    """Reads evaluation samples: ``once[number]`` is a row, or None and why it is excluded."""

    shards: Samples
    read: Read
    exclude_broken: bool

    def __getitem__(self, number: int) -> tuple[Example | None, tuple[Skipped, ...]]:
        try:
            rng = sample_rng(0, Draw(source=0, index=number, step=0))
            return _row(self.shards, number, self.read, rng), ()
        except BrokenSample as error:
            if not self.exclude_broken:
                raise
            return None, (Skipped(error.key, error.reason, replacement=""),)


@dataclass(frozen=True)
class _Worker(Dataset[LoadedBatch | ValueError | ChangedFile]):
    """What a loader process does: ``worker[step, items]`` is a delivery, or the error that the main process raises.

    An error travels as a value because torch would bury its message in a traceback, and lose its type.
    """

    rows: SampleReader | _Once
    collate: Collate

    def __getitem__(
        self, chunk: tuple[int, Sequence[Any]]
    ) -> LoadedBatch | ValueError | ChangedFile:  # Any: draws or numbers
        step, items = chunk
        try:
            found = [self.rows[item] for item in items]
        except (ValueError, ChangedFile) as error:
            return error
        rows = [row for row, _ in found if row is not None]
        skipped = tuple(itertools.chain.from_iterable(skips for _, skips in found))
        return LoadedBatch(step, self.collate(rows) if rows else {}, skipped)


def _row(shards: Samples, number: int, read: Read, rng: np.random.Generator) -> Example:
    """Read one sample; whatever is wrong with it comes out as ``BrokenSample`` with its key."""
    try:
        return read(shards[number], rng)
    except (BrokenSample, ChangedFile):
        raise
    except (OSError, ValueError) as error:
        raise BrokenSample(shards.key(number), f"{type(error).__name__}: {error}") from error


def _divide(batch: int, by: int, what: str) -> int:
    """Return ``batch`` / ``by``; DualfuseError if there is a remainder."""
    if by < 1 or batch % by:
        raise DualfuseError(f"a batch of {batch} cannot be divided by {by} {what}; choose a divisor of {batch}")
    return batch // by


def _steps(order: MixtureSampler, start: int) -> Iterator[tuple[int, tuple[Draw, ...]]]:
    """Return all draws of each step, without end."""
    for step in itertools.count(start):
        yield step, order.draws(step)


def _deliveries(worker: _Worker, chunks: Iterable[tuple[int, Sequence[Any]]], workers: int) -> Iterator[LoadedBatch]:
    """Let ``workers`` processes make the deliveries, in order; ends them when closed."""
    loader = DataLoader(
        worker,
        batch_size=None,  # an item is a whole delivery already, which torch hands on as it is
        sampler=chunks,
        num_workers=workers,
        worker_init_fn=_settle,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or torch would draw from the global one, and a resumed run would differ
    )
    loaded_batches = iter(loader)
    try:
        for loaded_batch in loaded_batches:
            if isinstance(loaded_batch, ValueError | ChangedFile):
                raise loaded_batch
            yield loaded_batch
    finally:
        del loaded_batches  # an error's traceback keeps this frame; the processes should not live as long


def _with_rows(loaded_batches: Iterator[LoadedBatch]) -> Iterator[LoadedBatch]:
    """Join deliveries without rows to a neighbour; DualfuseError if there are no rows at all."""
    held: LoadedBatch | None = None
    for loaded_batch in loaded_batches:
        if held is None or (held.batch and loaded_batch.batch):
            if held is not None:
                yield held
            held = loaded_batch
        else:
            held = LoadedBatch(held.step, held.batch or loaded_batch.batch, held.skipped + loaded_batch.skipped)
    if held is None or not held.batch:
        reasons = "; ".join(f"{skip.key}: {skip.reason}" for skip in (held.skipped if held else ())[:3])
        raise DualfuseError(f"nothing to evaluate: all samples are broken; the first: {reasons}")
    yield held


def _settle(worker: int) -> None:
    """Prepare a loader process: one thread, and signals are for the main process, which then ends it.

    Schedulers send SIGTERM to all processes at once; a loader that died would cost the checkpoint. The second one, by
    which the main process ends a loader that does not answer, works.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
