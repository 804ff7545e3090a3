"""What the loop is fed with: the data of a recipe as endless micro-batches of this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dualfuse import distributed as dist
from dualfuse.data.loader import Example, LoadedBatch, SampleReader, places, training_batches
from dualfuse.data.map_dataset import MapDataset
from dualfuse.data.sample import Sample
from dualfuse.data.sampler import MixtureSampler
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.corpus import Corpus, pack_share
from dualfuse.data.text.length_buckets import in_buckets
from dualfuse.errors import DualfuseError
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Batch
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig
from dualfuse.training.checkpoint import JSON

logger = logging.getLogger(__name__)

PASS = "samples_in_a_pass"  # what checkpoints call it


def training_dataloader(recipe: Recipe, *, start: int) -> Iterator[LoadedBatch]:
    """Return this process's micro-batches from step ``start`` on; what cannot be read or divided is refused at once."""
    data, run = recipe.data, recipe.run
    if not data.train:
        raise DualfuseError(f"no training data: give --data.train {_wanted(recipe)}")
    sets = open_sets(recipe, data.train)
    return training_batches(
        SampleReader(sets, partial(read_example, recipe), run.seed),
        _order(recipe, sets),
        partial(collate, recipe),
        start=start,
        rank=dist.rank(),
        world=dist.world_size(),
        micro_batch=run.micro_batch,
        workers=data.num_workers,
    )


def keys_at(recipe: Recipe, step: int) -> tuple[str, ...]:
    """Return the keys of the samples that this process was to have at ``step``, counted from 0."""
    sets = open_sets(recipe, recipe.data.train)
    draws = _order(recipe, sets).draws(step)
    parts = places(recipe.data.batch_size, dist.rank(), dist.world_size(), recipe.run.micro_batch)
    return tuple(sets[draws[place].source].key(draws[place].index) for part in parts for place in part)


def micro_steps(recipe: Recipe) -> int:
    """Return the number of micro-batches of a step."""
    local = recipe.data.batch_size // dist.world_size()
    return local // (recipe.run.micro_batch or local)


def passes(recipe: Recipe) -> dict[str, JSON]:
    """Return what a checkpoint keeps of how a batch is cut: the samples, of all processes, in one forward pass."""
    return {PASS: (recipe.run.micro_batch or recipe.data.batch_size // dist.world_size()) * dist.world_size()}


def check_passes(recipe: Recipe, extra: Mapping[str, JSON]) -> None:
    """Raise ``DualfuseError`` where contrast would see other samples side by side than in the run that goes on."""
    before, now = extra.get(PASS), passes(recipe)[PASS]
    if isinstance(before, int) and before != now:
        raise DualfuseError(
            f"the run had {before} samples in each forward pass, over all processes; {dist.world_size()} processes with "
            f"run.micro_batch={recipe.run.micro_batch} have {now}, and contrast would see others side by side. "
            f"Give --run.micro-batch {before // dist.world_size()}"
        )


def check_data(recipe: Recipe) -> None:
    """Raise ``DualfuseError`` for data that is missing or cannot be divided: now, not after days of an earlier stage."""
    training_dataloader(recipe, start=0)
    data = recipe.data
    sources = (*data.train, *filter(None, [data.validation]))
    for source, opened in zip(sources, open_sets(recipe, sources), strict=True):
        if isinstance(opened, Corpus) and opened.broken:
            rows = len(opened) - opened.broken
            logger.info("%s: %s rows of text; %s lines cannot be read", source, f"{rows:,}", f"{opened.broken:,}")


def open_sets(recipe: Recipe, sources: tuple[str, ...]) -> tuple[MapDataset, ...]:
    """Return the sets a recipe learns from: rows of text where it learns from text alone, else the samples of shards.

    All processes take part: each packs its share of the files of text.
    """
    if not isinstance(recipe.task, MaskedTextConfig):
        return tuple(Shards.open(source) for source in sources)
    for source in sources:
        pack_share(source, recipe.data.text_transform, part=dist.rank(), of=dist.world_size())
    dist.barrier()
    return tuple(Corpus.open(source, recipe.data.text_transform) for source in sources)


def _order(recipe: Recipe, sets: tuple[MapDataset, ...]) -> MixtureSampler:
    data = recipe.data
    lengths = tuple(map(len, sets))
    return MixtureSampler(
        lengths, batch=data.batch_size, seed=recipe.run.seed, weights=data.weights, block=data.shuffle_block
    )


def _wanted(recipe: Recipe) -> str:
    is_text = isinstance(recipe.task, MaskedTextConfig)
    return "TEXT (.txt, .jsonl, .parquet or .tar)" if is_text else "SHARDS (dualfuse prepare makes them)"


def probe_batch(recipe: Recipe) -> Batch:
    """Return two training samples for each process: enough to see what a loss depends on."""
    data, run = (
        replace(recipe.data, batch_size=2 * dist.world_size(), num_workers=0),
        replace(recipe.run, micro_batch=0),
    )
    return next(training_dataloader(replace(recipe, data=data, run=run), start=0)).batch


def read_example(recipe: Recipe, sample: Sample, rng: np.random.Generator) -> Example:
    """Read one training sample, in a loader worker."""
    return recipe.task.read(sample, recipe.data.processor(), rng)


def collate(recipe: Recipe, rows: Sequence[Any]) -> Batch:  # Any: what the task's read gives
    """Make a batch of rows, in a loader worker; for compiled blocks one of few shapes."""
    batch = recipe.task.collate(rows)
    return in_buckets(batch, recipe.data.text_length) if recipe.run.compile else batch
