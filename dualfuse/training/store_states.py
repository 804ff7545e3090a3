"""Compute the states of frozen towers for all images and texts of a run, and store them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from types import FunctionType

import torch
from torch import Tensor, nn

from dualfuse import distributed as dist
from dualfuse.data.map_dataset import MapDataset
from dualfuse.data.parallel_map import parallel_map
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.padding import pad_texts
from dualfuse.io import format_size, remove_folder
from dualfuse.lock import lock
from dualfuse.models.base import VisionLanguageModel
from dualfuse.models.towers.base import Tower, TowerOutput, pooled_output
from dualfuse.progress import track
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.base import Task
from dualfuse.training.dataloader import open_sets
from dualfuse.training.state_file import StateFile, check_space
from dualfuse.training.tower_states import (
    NOT_AUGMENTED,
    StoredStates,
    image_key,
    pack,
    shape_of,
    text_key,
    view_of,
)

logger = logging.getLogger(__name__)

FORMAT = 1
BATCH = 64
FOLDER = "tower_states"


def use_stored_states(task: Task, recipe: Recipe) -> Processor:
    """Store the states of frozen towers, let the model read them, and return the processor of training samples."""
    processor = recipe.data.processor()
    if (stored := store_states(task, recipe)) is None:
        return processor
    task.model.stored_states = stored
    return stored.processor(processor, recipe.towers.views)


def evaluation_processor(task: Task, data: Data) -> Processor:
    """Return the processor of validation samples during training; it reads stored states if there are any."""
    processor = replace(data.processor(), image=replace(data.image_transform, augment=None))
    stored = task.model.stored_states if isinstance(task.model, VisionLanguageModel) else None
    return stored.processor(processor, 0) if isinstance(stored, StoredStates) else processor


def store_states(task: Task, recipe: Recipe) -> StoredStates | None:
    """Return the stored states of the towers of ``task``, which are computed first where they are missing.

    The states are in the user's cache folder, and shared by all runs with the same towers and preprocessing: a second
    process waits for the first. None, with the reason in the log, if they cannot be used. Raises ``DualfuseError`` if
    the disk is full.
    """
    towers = task.model.towers() if isinstance(task.model, VisionLanguageModel) else {}
    if not all(tower.is_frozen and task.model.layers_to_read(tower) for tower in towers.values()) or not towers:
        return None
    if reason := _reason_against(recipe):
        logger.info("the states of the frozen towers are not stored: %s", reason)
        return None
    jobs = {kind: _job(kind, tower, task, recipe) for kind, tower in towers.items()}
    with torch.no_grad():
        needed = _find(jobs, recipe)
        total = sum(job.size(needed[kind]) for kind, job in jobs.items())
        if total > (limit := recipe.towers.cache_gb * 1e9):
            logger.info(
                "the states of the frozen towers take %s and are not stored, because towers.cache_gb is %g; they run "
                "in every step",
                format_size(total),
                limit / 1e9,
            )
            return None
        _make_room(limit - total, keep=[job.folder for job in jobs.values()])
        for kind, job in jobs.items():
            job.run(needed[kind])
    return StoredStates(StateFile(jobs["image"].folder), StateFile(jobs["text"].folder), jobs["image"].only_pooled)


def _reason_against(recipe: Recipe) -> str:
    """Return why states cannot be stored; empty if they can."""
    if not recipe.towers.cache_gb:
        return "towers.cache_gb is 0"
    if recipe.data.augment is not None and not recipe.towers.views:
        return (
            "training images are augmented anew in every epoch; give --towers.views N to store N views of each, or set "
            "data.augment to None in the recipe"
        )
    if _cache() is None:
        return "there is no cache folder; set XDG_CACHE_HOME"
    return ""


def _cache() -> Path | None:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return None if cache.startswith("~") else Path(cache) / "dualfuse" / FOLDER


Needed = Mapping[bytes, Callable[[], Tensor]]
"""What computes the input of a tower, by key: pixels (3, H, W), or token ids (T,)."""


@dataclass(frozen=True, eq=False)
class _Job:
    """Runs one tower on what is needed and missing, and appends its states to a folder."""

    kind: str
    folder: Path
    tower: Tower
    layers: tuple[int, ...]
    device: torch.device
    only_pooled: bool

    def outputs(self, inputs: Sequence[Tensor]) -> Iterator[tuple[int, TowerOutput, int | None]]:
        """Yield the row and the number of tokens (None: all) of each of ``inputs`` in the tower's output."""
        if self.kind == "image":
            output = self._reduced(self.tower(torch.stack(list(inputs)).to(self.device), layers=self.layers))
            yield from ((row, output, None) for row in range(len(inputs)))
        else:
            ids, mask = pad_texts([each.numpy() for each in inputs])
            output = self._reduced(self.tower(ids.to(self.device), mask.to(self.device), layers=self.layers))
            yield from ((row, output, len(text)) for row, text in enumerate(inputs))

    def _reduced(self, output: TowerOutput) -> TowerOutput:
        return pooled_output(output) if self.only_pooled else output

    def size(self, needed: Needed) -> int:
        """Return the bytes of all records, from the size of one image, or of one token and all lengths."""
        for read in needed.values():
            try:
                example = read()
            except (OSError, ValueError):  # a broken image
                continue
            row, output, length = next(iter(self.outputs([example])))
            one = 2 * len(pack(output, row, length))
            if self.kind == "image" or self.only_pooled:
                return one * len(needed)
            pooled = 0 if output.pooled is None else 2 * output.pooled.shape[1]
            tokens = sum(len(each()) for each in needed.values())
            return (one - pooled) // len(example) * tokens + pooled * len(needed)
        return 0

    def run(self, needed: Needed) -> None:
        """Compute and append the missing records, while no other process does."""
        with lock(self.folder / ".lock", self.folder, wait=True):
            file = StateFile(self.folder)
            missing = {key: read for key, read in needed.items() if key not in file}
            if missing:
                size = self.size(missing)
                logger.info(
                    "states of the frozen %s tower: %s for %s %ss are computed once and stored in %s, which may be "
                    "deleted at any time",
                    self.kind,
                    format_size(size),
                    f"{len(missing):,}",
                    self.kind,
                    self.folder,
                )
                check_space(self.folder, size)
                self._append(file, missing)
            os.utime(self.folder)

    def _append(self, file: StateFile, missing: Needed) -> None:
        order = list(missing)
        if self.kind == "text":
            order.sort(key=lambda key: len(missing[key]()))
        inputs = parallel_map(partial(_input, missing), order)
        batches = iter(lambda: list(islice(inputs, BATCH)), [])
        for batch in track(batches, total=-(-len(order) // BATCH), what=f"states of {self.kind}s"):
            usable = [(key, value) for key, value in batch if value is not None]
            if not usable:
                continue
            records = dict[bytes, Tensor]()
            outputs = self.outputs([value for _, value in usable])
            for (key, _), (row, output, length) in zip(usable, outputs, strict=True):
                if not file.shape:
                    file.describe(shape_of(output))
                records[key] = pack(output, row, length)
            file.append(records)


def _input(missing: Needed, key: bytes) -> Tensor | None:
    """Return an input; None for a broken image, which training skips and reports."""
    try:
        return missing[key]()
    except (OSError, ValueError):
        return None


def _job(kind: str, tower: Tower, task: Task, recipe: Recipe) -> _Job:
    layers, digest, transform = task.model.layers_to_read(tower), sha256(), recipe.data.image_transform
    parts: list[object] = [FORMAT, kind, layers, *(["pooled"] if task.model.reads_pooled_states else [])]
    if kind == "image":
        parts += [transform.size, transform.preprocess, transform.augment]
    for name, module in tower.named_modules():
        parts.append((name, type(module).__qualname__, _settings(module)))
    digest.update(repr(parts).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    cache = _cache()
    assert cache is not None  # by _reason_against
    return _Job(
        kind, cache / f"{kind}-{digest.hexdigest()[:16]}", tower, layers, task.device, task.model.reads_pooled_states
    )


def _settings(module: nn.Module) -> list[tuple[str, object]]:
    """Return the numbers, texts and functions that a module computes with, besides its tensors."""
    settings = {name: value for name, value in vars(module).items() if isinstance(value, int | float | str | tuple)}
    functions = {name: value.__qualname__ for name, value in vars(module).items() if isinstance(value, FunctionType)}
    return sorted((settings | functions).items())


def _find(jobs: Mapping[str, _Job], recipe: Recipe) -> dict[str, dict[bytes, Callable[[], Tensor]]]:
    """Read all training and validation samples once, and return what computes the input of each tower, by key."""
    data, processor = recipe.data, recipe.data.processor()
    needed: dict[str, dict[bytes, Callable[[], Tensor]]] = {kind: {} for kind in jobs}
    trained = range(recipe.towers.views) if data.augment is not None else [NOT_AUGMENTED]
    for sources, views in ((data.train, trained), (tuple(filter(None, [data.validation])), [NOT_AUGMENTED])):
        for samples in open_sets(recipe, sources):
            for index, sample in _usable(samples):
                for number, image in enumerate((sample.image, *sample.other_images)):
                    for view in views:
                        read = partial(_pixels, recipe, samples, index, number, view)
                        needed["image"].setdefault(image_key(image, view), read)
                for text in sample.texts:
                    ids = processor.text.encode(text).ids
                    needed["text"].setdefault(text_key(ids), partial(torch.from_numpy, ids))
    return needed


def _usable(samples: MapDataset) -> Iterator[tuple[int, Sample]]:
    for index in track(range(len(samples)), total=len(samples), what="reading"):
        try:
            yield index, samples[index]
        except (BrokenSample, OSError):  # which training skips and reports
            continue


def _pixels(recipe: Recipe, samples: MapDataset, index: int, number: int, view: int) -> Tensor:
    sample = samples[index]
    return view_of(recipe.data.image_transform, (sample.image, *sample.other_images)[number], view)


def _make_room(free: float, keep: Iterable[Path]) -> None:
    """Delete the states of other towers, those that were not used for longest first, down to ``free`` bytes."""
    cache = _cache()
    if cache is None or not cache.is_dir() or dist.rank():
        return
    others = [folder for folder in cache.iterdir() if folder.is_dir() and folder not in set(keep)]
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) for folder in others}
    for folder in sorted(others, key=lambda folder: folder.stat().st_mtime):
        if sum(sizes.values()) <= free:
            return
        if not (folder / ".lock").exists():
            logger.info("deleted stored states of other towers, to stay within towers.cache_gb: %s", folder)
            remove_folder(folder)
            del sizes[folder]
