"""The training data of a recipe as an endless stream of micro-batches of this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from dualfuse import distributed as dist
from dualfuse.data.caption_dataset import CaptionDataset
from dualfuse.data.loader import Example, LoadedBatch, SampleReader, batch_positions, training_batches
from dualfuse.data.map_dataset import MapDataset
from dualfuse.data.neighbors import Neighbors
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.sampler import MixtureSampler
from dualfuse.data.text.corpus import Corpus
from dualfuse.data.text.padding import pad_to_buckets
from dualfuse.errors import DualfuseError
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Batch

logger = logging.getLogger(__name__)


def training_dataloader(
    recipe: Recipe, *, start: int, processor: Processor | None = None, neighbors: Neighbors | None = None
) -> Iterator[LoadedBatch]:
    """Yield the micro-batches of this process from step ``start`` on, read by ``processor`` (None: the recipe's).

    With ``neighbors`` of all samples, batches consist of groups of neighbors. Raises ``DualfuseError`` at once if a set
    cannot be read, or if the batch size cannot be divided.
    """
    data, run = recipe.data, recipe.run
    if not data.train:
        raise DualfuseError(f"no training data: give --data.train {recipe.task.training_data}")
    sets = training_sets(recipe)
    return training_batches(
        SampleReader(sets, partial(read_example, recipe, processor or data.processor()), run.seed),
        _order(recipe, sets, neighbors),
        partial(collate, recipe),
        start=start,
        rank=dist.rank(),
        world=dist.world_size(),
        micro_batch=run.micro_batch,
        num_workers=data.num_workers,
    )


def limit_threads(num_workers: int) -> None:
    """Leave one core to each of ``num_workers`` loader processes, and the others, at least one, to torch.

    The environment variable OMP_NUM_THREADS, which torchrun sets, has precedence.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - num_workers))


def keys_at(recipe: Recipe, step: int, neighbors: Neighbors | None = None) -> tuple[str, ...]:
    """Return the keys of the samples of this process at the 0-based ``step``, which was drawn with ``neighbors``."""
    sets = training_sets(recipe)
    draws = _order(recipe, sets, neighbors).draws(step)
    parts = batch_positions(recipe.data.batch_size, dist.rank(), dist.world_size(), recipe.run.micro_batch)
    return tuple(sets[draws[place].source].key(draws[place].index) for part in parts for place in part)


def micro_steps(recipe: Recipe) -> int:
    """Return the number of micro-batches per step."""
    local = recipe.data.batch_size // dist.world_size()
    return local // (recipe.run.micro_batch or local)


def check_data(recipe: Recipe) -> None:
    """Raise ``DualfuseError`` for data that is missing or cannot be divided, before any stage is trained."""
    training_dataloader(recipe, start=0)
    data = recipe.data
    if data.sample_by == "caption":
        _report_captions(recipe)
    sources = (*data.train, *filter(None, [data.validation]))
    for source, opened in zip(sources, open_sets(recipe, sources), strict=True):
        if isinstance(opened, Corpus) and opened.broken:
            texts = len(opened) - opened.broken
            logger.info("%s: %s texts; %s unreadable lines are skipped", source, f"{texts:,}", f"{opened.broken:,}")


def count_samples(recipe: Recipe) -> int:
    """Return the number of samples of all training sets, or of captions; all processes must call this."""
    return sum(map(len, training_sets(recipe)))


def open_sets(recipe: Recipe, sources: tuple[str, ...]) -> tuple[MapDataset, ...]:
    """Open the sets that a recipe reads; all processes must call this."""
    return recipe.task.open_data(sources, recipe.data.text_transform)


def training_sets(recipe: Recipe) -> tuple[MapDataset, ...]:
    """Open the training sets as they are sampled, by image or by caption; all processes must call this.

    Their lengths are what an epoch and the shares of a mixture count. The first process counts captions, if needed.
    """
    sets = open_sets(recipe, recipe.data.train)
    if recipe.data.sample_by == "image":
        return sets
    if dist.rank() == 0:
        for samples in sets:
            samples.caption_counts()
    dist.barrier()
    return tuple(map(CaptionDataset, sets))


def _report_captions(recipe: Recipe) -> None:
    """Log the number of captions and the share of each set."""
    data, sets = recipe.data, training_sets(recipe)
    weights = data.weights or tuple(map(len, sets))
    for source, weight, captions in zip(data.train, weights, sets, strict=True):
        if isinstance(captions, CaptionDataset):
            images = len(captions.samples) - captions.without_caption
            without = f"; {captions.without_caption:,} without captions are not drawn" * (captions.without_caption > 0)
            share = f", {100 * weight / sum(weights):.1f} % of each batch" if len(sets) > 1 else ""
            logger.info("%s: %s captions of %s images%s%s", source, f"{len(captions):,}", f"{images:,}", share, without)


def _order(recipe: Recipe, sets: tuple[MapDataset, ...], neighbors: Neighbors | None = None) -> MixtureSampler:
    data, lengths = recipe.data, tuple(map(len, sets))
    return MixtureSampler(
        lengths, data.batch_size, recipe.run.seed, weights=data.weights, block=data.shuffle_block, neighbors=neighbors
    )


def probe_batch(recipe: Recipe) -> Batch:
    """Return two training samples per process: enough to find the parameters that a loss depends on."""
    data, run = (
        replace(recipe.data, batch_size=2 * dist.world_size(), num_workers=0),
        replace(recipe.run, micro_batch=0),
    )
    return next(training_dataloader(replace(recipe, data=data, run=run), start=0)).batch


def read_example(recipe: Recipe, processor: Processor, sample: Sample, rng: np.random.Generator) -> Example:
    """Read one training sample; runs in a loader worker."""
    return recipe.task.read(sample, processor, rng)


def collate(recipe: Recipe, examples: Sequence[Any]) -> Batch:  # Any: what the task's read returns
    """Return a batch of examples, padded to one of few lengths for compiled blocks; runs in a loader worker."""
    batch = recipe.task.collate(examples)
    return pad_to_buckets(batch, recipe.data.text_length) if recipe.run.compile else batch
