"""Batches for training and evaluation, loaded by worker processes; broken samples are skipped and reported.

The content of a batch depends on the sampler, the seed and the step only, not on the number of workers or ranks.
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

Example = Mapping[str, Any]  # one sample as tensors and numbers; each task's TypedDict lists the keys
Batch = Mapping[str, Any]  # many examples; each task's TypedDict lists the keys
Read = Callable[[Sample, np.random.Generator], Example]
Collate = Callable[[Sequence[Any]], Batch]  # Any: the examples of one task

MAX_CONSECUTIVE_BROKEN = 100  # more broken samples in sequence mean that the set itself is broken


class Samples(Protocol):
    """A set whose samples are read by index: shards or a text corpus."""

    def __len__(self) -> int:
        """Return the number of samples, broken ones included."""
        ...

    def __getitem__(self, index: int, /) -> Sample:
        """Read a sample; raises ``BrokenSample`` if it is unusable."""
        ...

    def key(self, index: int) -> str:
        """Return the unique key of a sample without reading it."""
        ...


class TrainingSamples(Samples, Protocol):
    """A set in which every sample has a replacement."""

    def following(self, index: int, /) -> int:
        """Return the index of the sample that replaces sample ``index`` if that is broken."""
        ...


@dataclass(frozen=True)
class Skipped:
    """A skipped sample: its key, the reason, and the key of its replacement sample ("" in evaluation)."""

    key: str
    reason: str
    replacement: str


@dataclass(frozen=True)
class LoadedBatch:
    """One batch, its step (in evaluation: its index), and the samples that were skipped for it."""

    step: int
    batch: Batch
    skipped: tuple[Skipped, ...] = ()

    def pin_memory(self) -> LoadedBatch:
        """Return the batch with its tensors in pinned memory; called by torch's DataLoader in a thread."""
        pinned = {
            name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in self.batch.items()
        }
        return replace(self, batch=pinned)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch; copies from pinned memory to a GPU are asynchronous."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


@dataclass(frozen=True)
class SampleReader(Dataset[tuple[Example, tuple[Skipped, ...]]]):
    """Reader of training samples: ``reader[draw]`` is the example of that draw and the samples skipped for it.

    A broken sample is replaced by the next one of its set in file order (by the first caption of the next image, if
    captions are sampled), read with the random state of the draw, so that batches keep their size on every rank.
    ``read`` turns a sample into an example; a ``ValueError`` (such as ``BrokenSample``) or ``OSError`` that it raises
    makes the sample a broken one, except ``ChangedFile``, which ends the run.
    """

    sets: tuple[TrainingSamples, ...]
    read: Read
    seed: int

    def _read(self, source: int, sample: Sample, rng: np.random.Generator) -> Example:
        return self.read(replace(sample, source=source), rng)

    def __getitem__(self, draw: Draw) -> tuple[Example, tuple[Skipped, ...]]:
        """Return an example and the skipped samples.

        Raises DualfuseError if ``MAX_CONSECUTIVE_BROKEN`` samples in sequence, or all of the set, are broken.
        """
        samples = self.sets[draw.source]
        broken: list[BrokenSample] = []
        index = draw.index
        for _ in range(min(MAX_CONSECUTIVE_BROKEN, len(samples))):
            try:
                example = _read_example(samples, index, partial(self._read, draw.source), sample_rng(self.seed, draw))
            except BrokenSample as error:
                broken.append(error)
                index = samples.following(index)
                continue
            replacement = samples.key(index)
            return example, tuple(Skipped(error.key, error.reason, replacement) for error in broken)
        raise DualfuseError(
            f"set {draw.source} is broken: none of {len(broken)} samples in a row from {samples.key(draw.index)} is "
            f"usable; the first: {'; '.join(map(str, broken[:3]))}. Repair the set or remove it from the recipe's data"
        )


def training_batches(
    reader: SampleReader,
    sampler: MixtureSampler,
    collate: Collate,
    *,
    start: int,
    rank: int,
    world: int,
    micro_batch: int,
    num_workers: int,
) -> Iterator[LoadedBatch]:
    """Return an endless iterator over the micro-batches of one rank, beginning at step ``start``.

    The micro-batches of a step follow each other and have its number; with ``micro_batch`` 0 there is one, of all
    samples of the rank. The n-th micro-batches of all ranks, concatenated in rank order, are the n-th part of the
    global batch of ``sampler``, for any number of ranks. ``num_workers`` processes load ahead (0: none); they end when
    the iterator is closed or deleted. Raises DualfuseError immediately if the batch cannot be divided.
    """
    lengths = tuple(map(len, reader.sets))
    if sampler.lengths != lengths:
        raise DualfuseError(f"the sampler has sets of {sampler.lengths} samples, the reader has sets of {lengths}")
    if not 0 <= rank < world:
        raise DualfuseError(f"rank is {rank} of {world}; ranks count from 0")
    parts = batch_positions(sampler.batch_size, rank, world, micro_batch)
    steps = ((step, sampler.draws(step)) for step in itertools.count(start))
    chunks = ((step, tuple(draws[position] for position in part)) for step, draws in steps for part in parts)
    return _load(_BatchReader(reader, collate), chunks, num_workers)


def batch_positions(batch_size: int, rank: int, world: int, micro_batch: int) -> tuple[range, ...]:
    """Return the positions in a global batch that belong to one rank, one range per micro-batch.

    Raises DualfuseError if the batch cannot be divided.
    """
    local = _divide(batch_size, by=world, what="processes")
    micro = micro_batch or local
    _divide(local, by=micro, what="samples per micro-batch")
    return tuple(range(first, first + micro) for first in range(rank * micro, batch_size, world * micro))


def evaluation_batches(
    samples: Samples, read: Read, collate: Collate, *, batch_size: int, num_workers: int, exclude_broken: bool
) -> Iterator[LoadedBatch]:
    """Return every sample once, in file order, ``batch_size`` examples at a time.

    A broken sample raises ``BrokenSample`` with its key; with ``exclude_broken`` it is skipped and reported. A batch
    without any usable sample is not returned: its skipped samples are reported with a neighbouring batch. The random
    state of an example depends on its index only.
    """
    if batch_size < 1:
        raise DualfuseError(f"batch_size is {batch_size}; it must be 1 or more")
    starts = range(0, len(samples), batch_size)
    chunks = ((step, range(first, min(first + batch_size, len(samples)))) for step, first in enumerate(starts))
    reader = _BatchReader(_EvaluationReader(samples, read, exclude_broken), collate)
    return _merge_empty(_load(reader, chunks, num_workers))


@dataclass(frozen=True)
class _EvaluationReader(Dataset[tuple[Example | None, tuple[Skipped, ...]]]):
    """Reader of evaluation samples: ``reader[index]`` is an example, or None and the reason for skipping it."""

    samples: Samples
    read: Read
    exclude_broken: bool

    def __getitem__(self, index: int) -> tuple[Example | None, tuple[Skipped, ...]]:
        try:
            rng = sample_rng(0, Draw(source=0, index=index, step=0))
            return _read_example(self.samples, index, self.read, rng), ()
        except BrokenSample as error:
            if not self.exclude_broken:
                raise
            return None, (Skipped(error.key, error.reason, replacement=""),)


@dataclass(frozen=True)
class _BatchReader(Dataset[LoadedBatch | ValueError | ChangedFile]):
    """The dataset of a loader process: ``reader[step, items]`` is a batch, or an error for the main process to raise.

    Errors are returned because torch would bury their message in a traceback and lose their type.
    """

    examples: SampleReader | _EvaluationReader
    collate: Collate

    def __getitem__(
        self,
        chunk: tuple[int, Sequence[Any]],  # Any: draws or indices
    ) -> LoadedBatch | ValueError | ChangedFile:
        step, items = chunk
        try:
            results = [self.examples[item] for item in items]
        except (ValueError, ChangedFile) as error:
            return error
        examples = [example for example, _ in results if example is not None]
        skipped = tuple(itertools.chain.from_iterable(skipped for _, skipped in results))
        return LoadedBatch(step, self.collate(examples) if examples else {}, skipped)


def _read_example(samples: Samples, index: int, read: Read, rng: np.random.Generator) -> Example:
    """Read one sample; every problem with it is raised as ``BrokenSample`` with its key."""
    try:
        return read(samples[index], rng)
    except (BrokenSample, ChangedFile):
        raise
    except (OSError, ValueError) as error:
        raise BrokenSample(samples.key(index), f"{type(error).__name__}: {error}") from error


def _divide(batch: int, by: int, what: str) -> int:
    """Return ``batch`` / ``by``; raises DualfuseError if there is a remainder."""
    if by < 1 or batch % by:
        raise DualfuseError(f"a batch of {batch} cannot be divided by {by} {what}; choose a divisor of {batch}")
    return batch // by


def _load(reader: _BatchReader, chunks: Iterable[tuple[int, Sequence[Any]]], num_workers: int) -> Iterator[LoadedBatch]:
    """Load the batches in ``num_workers`` processes, in order; closing the iterator ends the processes."""
    loader = DataLoader(
        reader,
        batch_size=None,  # an item is a complete batch already, which torch passes through
        sampler=chunks,
        num_workers=num_workers,
        worker_init_fn=_init_worker,
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
        del loaded_batches  # the traceback of an error keeps this frame alive, and would keep the processes with it


def _merge_empty(loaded_batches: Iterator[LoadedBatch]) -> Iterator[LoadedBatch]:
    """Merge batches without examples into a neighbour; raises DualfuseError if there are no examples at all."""
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


def _init_worker(worker: int) -> None:
    """Set up a loader process: one thread, and termination signals are left to the main process.

    Schedulers send SIGTERM to all processes at once, and a loader that died would cost the checkpoint. The second
    SIGTERM, by which the main process ends a loader that does not answer, takes effect.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # of a closed terminal, which training outlives
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
