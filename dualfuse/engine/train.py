"""Training: ``train`` runs recipes in order, ``fit`` is the loop."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from dualfuse import dist, hub
from dualfuse.config import from_json, to_json
from dualfuse.data.loader import Delivery, Reader, training_batches
from dualfuse.data.order import Order
from dualfuse.data.sample import Sample
from dualfuse.data.shards import Shards
from dualfuse.engine import checkpoint
from dualfuse.engine.evaluate import Plan, evaluate
from dualfuse.engine.interrupt import stop_asked
from dualfuse.engine.log import Ledger, Log
from dualfuse.engine.memory import keep_big_blocks
from dualfuse.engine.optim import build_optimizer, clip_gradients, learning_rate, set_learning_rate
from dualfuse.recipe import Recipe, Run
from dualfuse.tasks.base import Batch, Task

FINAL, CHECKPOINTS, RECIPE = "final", "checkpoints", "recipe.json"


class Interrupted(KeyboardInterrupt):
    """A run was stopped between two steps, after a checkpoint; the same command goes on from there."""


def train(recipes: Sequence[Recipe], out: Path) -> Path:
    """Runs recipes in order, each in its own folder, and gives the folder of the last model.

    A finished recipe is skipped, an unfinished one goes on at its last checkpoint. A single recipe uses ``out``
    itself, several use ``out``/name.
    """
    keep_big_blocks()
    folders = {recipe.name: out if len(recipes) == 1 else out / recipe.name for recipe in recipes}
    console = Console(stderr=True)
    with dist.processes() as device:
        for recipe in recipes:
            folder = folders[recipe.name]
            if _is_finished(recipe, folder):
                console.print(f"{recipe.name}: finished before, in {folder / FINAL}", highlight=False)
                continue
            earlier = folders.get(recipe.start_from)
            start = earlier / FINAL if earlier else Path(recipe.start_from) if recipe.start_from else None
            _run(recipe, folder, start, device)
    return folders[recipes[-1].name] / FINAL


def _run(recipe: Recipe, out: Path, start: Path | None, device: torch.device) -> None:
    torch.manual_seed(recipe.run.seed)
    task = recipe.task.build(recipe.model.build())
    if start:
        begin_with(task, start)
    freeze(task, recipe.train_only)
    task.to(device)
    optimizer = build_optimizer(task, recipe.optim)
    step = 0
    if newest := checkpoint.latest(out / CHECKPOINTS):
        step, _ = checkpoint.restore(newest, task, optimizer)
    _write_recipe(recipe, out)
    state = State(recipe, out, task, optimizer, step)
    fit(state, dist.wrap(task, device), deliveries(recipe, start=step), device)
    if dist.rank() == 0:
        hub.save(out / FINAL, task, recipe)
    dist.barrier()


@dataclass
class State:
    """Everything the loop changes or saves."""

    recipe: Recipe
    out: Path
    task: Task
    optimizer: torch.optim.Optimizer
    step: int

    def save(self) -> None:
        """Writes a checkpoint, from the first process."""
        if dist.rank() == 0:
            folder = self.out / CHECKPOINTS
            checkpoint.save(folder, self.step, self.task, self.optimizer, {}, self.recipe.run.keep)
        dist.barrier()


def fit(state: State, forward: nn.Module, stream: Iterator[Delivery], device: torch.device) -> None:
    """Trains until the recipe's last step; ``forward`` is the task or its distributed wrap."""
    recipe, run = state.recipe, state.recipe.run
    micro_steps = _micro_steps(recipe)
    precision = partial(torch.autocast, device.type, torch.bfloat16, enabled=run.precision == "bf16")
    folder = state.out if dist.rank() == 0 else state.out / f"rank-{dist.rank()}"
    state.task.train()
    ledger = Ledger(folder, state.step)
    with Log(folder, steps=run.steps, start=state.step, tensorboard=run.tensorboard) as log, stop_asked() as asked:
        while state.step < run.steps:
            rate = learning_rate(recipe.optim, state.step, run.steps)
            set_learning_rate(state.optimizer, rate)
            for micro, delivery in enumerate(islice(stream, micro_steps)):
                seed_step(run, state.step, micro)
                with dist.sync_gradients(forward, when=micro == micro_steps - 1), precision():
                    output = forward(to_device(delivery.batch, device))
                    (output.loss / micro_steps).backward()
                log.add(output.log)
                for skipped in delivery.skipped:
                    ledger.append(state.step + 1, skipped.key, skipped.reason, skipped.stand_in)
            norm = clip_gradients(state.task, recipe.optim.clip)
            state.optimizer.step()
            state.optimizer.zero_grad()
            state.step += 1
            log.add({"gradient_norm": norm, "count/samples": recipe.data.batch})
            stopping = asked.is_set() and dist.world() == 1
            if due(state.step, run.log_every, run.steps) or stopping:
                log.write(state.step, lr=rate, skipped=ledger.count)
            if recipe.data.validation and due(state.step, run.eval_every, run.steps):
                log.write(state.step, **validate(state))
            if due(state.step, run.save_every, run.steps) or stopping:
                state.save()
            if stopping:
                raise Interrupted(f"stopped after step {state.step}; the same command goes on from there")


def due(step: int, every: int, steps: int) -> bool:
    """Tells whether something that happens every so many steps, and at the end, happens now."""
    return step == steps or (every > 0 and step % every == 0)


def seed_step(run: Run, step: int, micro: int) -> None:
    """Makes dropout and drawing a function of seed, step and process, so that resuming needs no random state."""
    words = np.random.SeedSequence((run.seed, step, micro, dist.rank())).generate_state(2, np.uint32)
    torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def validate(state: State) -> dict[str, float]:
    """Evaluates the task as it is now, on the recipe's validation set."""
    state.task.eval()
    data = state.recipe.data
    prep = replace(data.prep(), image=replace(data.image, augment=None))
    result = evaluate(state.task, prep, Shards.open(data.validation), Plan(workers=data.workers))
    state.task.train()
    return {f"validation/{name}": value for name, value in result.metrics.items()}


def deliveries(recipe: Recipe, *, start: int) -> Iterator[Delivery]:
    """Gives this process's micro-batches from step ``start`` on."""
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


def read_row(recipe: Recipe, sample: Sample, rng: np.random.Generator):
    """Reads one training sample, in a loader worker."""
    return recipe.task.read(sample, recipe.data.prep(), rng)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Moves the tensors of a batch."""
    moved = {}
    for name, value in batch.items():
        moved[name] = value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
    return moved


def freeze(task: nn.Module, train_only: Sequence[str]) -> None:
    """Freezes every parameter that no pattern matches; no pattern freezes nothing."""
    names = [name for name, _ in task.named_parameters()]
    for pattern in train_only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"pattern {pattern!r} matches no parameter; names look like {', '.join(names[:3])}")
    for name, parameter in task.named_parameters():
        parameter.requires_grad_(not train_only or any(fnmatchcase(name, pattern) for pattern in train_only))


def begin_with(task: Task, folder: Path) -> None:
    """Copies every tensor that fits by name and shape, and says which did not."""
    given, wanted = hub.read_tensors(folder), task.state_dict()
    fits = {name: tensor for name, tensor in given.items() if name in wanted and wanted[name].shape == tensor.shape}
    if not fits:
        raise ValueError(f"nothing in {folder} fits this recipe's model: no name and shape agree")
    task.load_state_dict(fits, strict=False)
    report = {"new": wanted.keys() - fits.keys(), "unused": given.keys() - fits.keys()}
    console = Console(stderr=True)
    console.print(f"starting from {folder}: {len(fits)} of {len(wanted)} tensors", highlight=False)
    for word, names in report.items():
        if names:
            console.print(f"  {word}: {', '.join(sorted(names))}", highlight=False)


def _micro_steps(recipe: Recipe) -> int:
    local = recipe.data.batch // dist.world()
    return local // (recipe.run.micro_batch or local)


def _is_finished(recipe: Recipe, out: Path) -> bool:
    if not (out / FINAL / hub.CONFIG).exists():
        return False
    _compare(recipe, out)
    return True


def _write_recipe(recipe: Recipe, out: Path) -> None:
    """Keeps the recipe beside its checkpoints; refuses to go on with another one."""
    if checkpoint.latest(out / CHECKPOINTS):
        _compare(recipe, out)
    if dist.rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        (out / RECIPE).write_text(json.dumps(to_json(recipe), indent=1) + "\n")


def _compare(recipe: Recipe, out: Path) -> None:
    stored = from_json(json.loads((out / RECIPE).read_text()))
    differing = [
        f"{part} was {before!r}, is {now!r}"
        for part, before, now in _differences(to_json(_essence(stored)), to_json(_essence(recipe)))
    ]
    if differing:
        raise ValueError(
            f"{out} holds a run of another recipe:\n  "
            + "\n  ".join(differing)
            + "\nGive the same settings to go on with it, or another --out to start anew"
        )


def _essence(recipe: Recipe) -> Recipe:
    """Leaves out what does not change the result."""
    run = replace(recipe.run, log_every=0, eval_every=0, save_every=0, keep=1, tensorboard=False)
    return replace(recipe, run=run, data=replace(recipe.data, workers=0, validation=""))


def _differences(before: object, now: object, name: str = "") -> Iterator[tuple[str, object, object]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now:
        yield name, before, now
