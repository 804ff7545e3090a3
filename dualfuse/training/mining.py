"""Mining of hard negatives: neighbors over the whole training set, by the dual encoder, meet in one batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualfuse import distributed as dist
from dualfuse.data.loader import LoadedBatch
from dualfuse.data.neighbors import Neighbors
from dualfuse.data.processor import Processor
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.retrieval import Gallery
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.io import atomic_write
from dualfuse.metrics.recall import nearest
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Task
from dualfuse.training.dataloader import keys_at, micro_steps, training_dataloader, training_sets
from dualfuse.training.store_states import evaluation_processor

logger = logging.getLogger(__name__)

FOLDER = "neighbors"
SAME = 1 - 1e-5
"""Cosine from which two images, or two texts, count as the same."""


def check_mining(recipe: Recipe) -> None:
    """Raise ``DualfuseError`` if batches of neighbors cannot be drawn from the data of a recipe."""
    data, size = recipe.data, recipe.mining.group
    if size and (data.weights or data.sample_by != "image" or data.shuffle_block):
        raise DualfuseError(
            f"mining.group is {size}, which orders all samples of an epoch: it needs data.sample_by image, and neither "
            "data.weights nor data.shuffle_block; remove them, or set mining.group to 0"
        )
    if size and recipe.run.fsdp:
        raise DualfuseError("mining.group embeds the training set on one process: set run.fsdp or mining.group to 0")
    if size > data.batch_size:
        raise DualfuseError(f"mining.group is {size}; at most data.batch_size, {data.batch_size}, meet in a batch")


def mined_dataloader(
    task: Task, recipe: Recipe, out: Path, *, start: int, processor: Processor
) -> Iterator[LoadedBatch]:
    """Yield micro-batches from step ``start`` on; with ``mining.group``, batches of neighbors.

    Neighbors are searched by the task of the step at which they are first needed, and stored in ``out``, so that a run
    resumes with the same batches.
    """
    if not recipe.mining.group:
        yield from training_dataloader(recipe, start=start, processor=processor)
        return
    every, step = refresh_steps(task, recipe), start
    while True:
        first = step // every * every if every else 0
        neighbors = _stored(recipe, out, first) or _mined(task, recipe, out, first)
        stream = training_dataloader(recipe, start=step, processor=processor, neighbors=neighbors)
        if not every:
            yield from stream
        yield from islice(stream, (first + every - step) * micro_steps(recipe))
        step = first + every


def neighbors_at(recipe: Recipe, out: Path, step: int) -> Neighbors | None:
    """Return the neighbors that the batch of a step was drawn with; None without mining."""
    tables = sorted((out / FOLDER).glob("step-*.npy")) if recipe.mining.group else []
    used = [path for path in tables if int(path.stem.removeprefix("step-")) <= step]
    return Neighbors(np.load(used[-1], allow_pickle=False), recipe.mining.group) if used else None


def keys_of_step(recipe: Recipe, out: Path, step: int) -> tuple[str, ...]:
    """Return the keys of the samples of this process at the 0-based ``step`` of the run in ``out``."""
    return keys_at(recipe, step, neighbors_at(recipe, out, step))


def refresh_steps(task: Task, recipe: Recipe) -> int:
    """Return the steps between two searches for neighbors; 0 if the embeddings do not change in training."""
    trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    towers = getattr(task.model, "towers", dict)()
    frozen = towers and all(tower.is_frozen for tower in towers.values())
    if frozen and not any(name.startswith("itc_heads.") for name in trained):
        return 0
    epoch = sum(map(len, training_sets(recipe))) / recipe.data.batch_size
    return max(1, round(recipe.mining.refresh_epochs * epoch)) if recipe.mining.refresh_epochs else 0


def _stored(recipe: Recipe, out: Path, first: int) -> Neighbors | None:
    path = _path(out, first)
    return Neighbors(np.load(path, allow_pickle=False), recipe.mining.group) if path.is_file() else None


def _path(out: Path, first: int) -> Path:
    return out / FOLDER / f"step-{first:08d}.npy"


def _mined(task: Task, recipe: Recipe, out: Path, first: int) -> Neighbors:
    """Search neighbors with the current weights, and store them; the other processes read what the first one wrote."""
    logger.info("mining.group: the %d nearest samples of each are searched at step %d", recipe.mining.neighbors, first)
    if dist.rank() == 0:
        training = task.training
        with torch.inference_mode():
            table = search_neighbors(task.eval(), recipe)
        task.train(training)
        path = _path(out, first)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial, partial.open("wb") as file:
            np.save(file, table)
    dist.barrier()
    neighbors = _stored(recipe, out, first)
    assert neighbors is not None  # written above
    return neighbors


def search_neighbors(task: Task, recipe: Recipe) -> np.ndarray:
    """Return the numbers (N, M) of the samples whose image fits a sample's text and whose text fits its image best.

    The similarity is the sum of both cosines, with the first text of each sample. Samples with the same image or the
    same text are no neighbors, nor are samples that cannot be read; -1 fills their places.
    """
    sets, plan = training_sets(recipe), Plan(num_workers=0, exclude_broken=True)
    processor = _processor(task, recipe)
    images, texts, numbers = list[Tensor](), list[Tensor](), list[int]()
    start = 0
    for samples in sets:
        gallery = Gallery(task, EvaluationData(samples, processor), plan)
        image, text, _, owner = gallery.features()
        first = torch.searchsorted(owner, torch.arange(len(image), device=owner.device))
        places = {samples.key(number): number for number in range(len(samples))}
        images.append(image)
        texts.append(text[first])
        numbers += [start + places[key] for key in gallery.keys]
        start += len(samples)
    return _table(torch.cat(images), torch.cat(texts), np.array(numbers), start, recipe.mining.neighbors)


def _table(image: Tensor, text: Tensor, numbers: np.ndarray, total: int, wanted: int) -> np.ndarray:
    """Return the table (total, wanted) of neighbors of the samples ``numbers`` (N,) by their embeddings (N, D)."""
    more = min(len(image), 2 * wanted + 1)  # some of which are the same
    _, index = nearest(torch.cat([text, image], dim=1), torch.cat([image, text], dim=1), more)
    same = torch.stack([_same(each, index) for each in (image, text)]).any(0).cpu().numpy()
    table = np.full((total, wanted), -1, dtype=np.int32)
    for row, (number, near, is_same) in enumerate(zip(numbers, index.cpu().numpy(), same, strict=True)):
        kept = near[~is_same & (near != row)][:wanted]
        table[number, : len(kept)] = numbers[kept]
    return table


def _same(embeddings: Tensor, index: Tensor) -> Tensor:
    """Return whether the embeddings (N, D) at ``index`` (N, K) are those of the row."""
    return torch.einsum("nd,nkd->nk", embeddings, embeddings[index]) > SAME


def _processor(task: Task, recipe: Recipe) -> Processor:
    """Return the processor of images as in evaluation; their states are stored if training does not augment."""
    data = recipe.data
    if data.augment is None:
        return evaluation_processor(task, data)
    return replace(data.processor(), image=replace(data.image_transform, augment=None))
