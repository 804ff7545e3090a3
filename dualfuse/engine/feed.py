"""What the loop is fed with: the data of a recipe as endless micro-batches of this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dualfuse import dist
from dualfuse.data.corpus import Corpus, pack_share
from dualfuse.data.loader import Delivery, Reader, Row, Samples, training_batches
from dualfuse.data.order import Order
from dualfuse.data.sample import Sample
from dualfuse.data.shards import Shards
from dualfuse.engine.log import say
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Batch
from dualfuse.tasks.masked_text import MaskedTextConfig


def deliveries(recipe: Recipe, *, start: int) -> Iterator[Delivery]:
    """Gives this process's micro-batches from step ``start`` on; what cannot be read or divided is refused at once."""
    data, run = recipe.data, recipe.run
    if not data.train:
        raise ValueError(f"no training data: give --data.train {_wanted(recipe)}")
    sets = open_sets(recipe, data.train)
    order = Order(tuple(map(len, sets)), batch=data.batch, seed=run.seed, weights=data.weights, block=data.block)
    return training_batches(
        Reader(sets, partial(read_row, recipe), run.seed),
        order,
        recipe.task.collate,
        start=start,
        rank=dist.rank(),
        world=dist.world(),
        micro_batch=run.micro_batch,
        workers=data.workers,
    )


def micro_steps(recipe: Recipe) -> int:
    """Gives the number of micro-batches of a step."""
    local = recipe.data.batch // dist.world()
    return local // (recipe.run.micro_batch or local)


def check_data(recipe: Recipe) -> None:
    """Raises ``ValueError`` for data that is missing or cannot be divided: now, not after days of an earlier stage."""
    deliveries(recipe, start=0)
    data = recipe.data
    sources = (*data.train, *filter(None, [data.validation]))
    for source, opened in zip(sources, open_sets(recipe, sources), strict=True):
        if isinstance(opened, Corpus) and opened.broken:
            say(f"{source}: {len(opened) - opened.broken:,} rows of text; {opened.broken:,} lines cannot be read")


def open_sets(recipe: Recipe, sources: tuple[str, ...]) -> tuple[Samples, ...]:
    """Gives the sets a recipe learns from: rows of text where it learns from text alone, else the samples of shards.

    All processes take part: each packs its share of the files of text.
    """
    if not isinstance(recipe.task, MaskedTextConfig):
        return tuple(Shards.open(source) for source in sources)
    for source in sources:
        pack_share(source, recipe.data.text, part=dist.rank(), of=dist.world(), tell=say)
    dist.barrier()
    return tuple(Corpus.open(source, recipe.data.text) for source in sources)


def _wanted(recipe: Recipe) -> str:
    is_text = isinstance(recipe.task, MaskedTextConfig)
    return "TEXT (.txt, .jsonl, .parquet or .tar)" if is_text else "SHARDS (dualfuse prepare makes them)"


def first_rows(recipe: Recipe) -> Batch:
    """Gives two training samples for each process: enough to see what a loss depends on."""
    data, run = replace(recipe.data, batch=2 * dist.world(), workers=0), replace(recipe.run, micro_batch=0)
    return next(deliveries(replace(recipe, data=data, run=run), start=0)).batch


def read_row(recipe: Recipe, sample: Sample, rng: np.random.Generator) -> Row:
    """Reads one training sample, in a loader worker."""
    return recipe.task.read(sample, recipe.data.prep(), rng)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Moves the tensors of a batch."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
