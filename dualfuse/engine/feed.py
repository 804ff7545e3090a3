"""What the loop is fed with: the data of a recipe as endless micro-batches of this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dualfuse import dist
from dualfuse.data.loader import Delivery, Reader, Row, training_batches
from dualfuse.data.order import Order
from dualfuse.data.sample import Sample
from dualfuse.data.shards import Shards
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Batch


def deliveries(recipe: Recipe, *, start: int) -> Iterator[Delivery]:
    """Gives this process's micro-batches from step ``start`` on; what cannot be read or divided is refused at once."""
    data, run = recipe.data, recipe.run
    if not data.train:
        raise ValueError("no training data: give --data.train SHARDS (dualfuse prepare makes them)")
    sets = tuple(Shards.open(source) for source in data.train)
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
    if recipe.data.validation:
        Shards.open(recipe.data.validation)


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
