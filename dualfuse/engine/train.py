"""Training: ``train`` runs recipes in order, ``fit`` is the loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dualfuse import dist, hub
from dualfuse.card import write_card
from dualfuse.config import trust
from dualfuse.data.loader import Delivery
from dualfuse.engine import checkpoint
from dualfuse.engine.ahead import on_device, to_device
from dualfuse.engine.best import Best, keep_best
from dualfuse.engine.cores import share_cores
from dualfuse.engine.earlier import with_tokenizers
from dualfuse.engine.evaluate import Plan
from dualfuse.engine.feed import (
    check_data,
    check_passes,
    deliveries,
    first_rows,
    keys_at,
    micro_steps,
    open_sets,
    passes,
)
from dualfuse.engine.guard import Guard
from dualfuse.engine.interrupt import Interrupted, stop_asked
from dualfuse.engine.judge import judge
from dualfuse.engine.log import Ledger, Log, say
from dualfuse.engine.memory import compile_each, keep_big_blocks, recompute, uncompiled
from dualfuse.engine.optim import build_optimizer, clip_gradients, learning_rate, set_learning_rate
from dualfuse.engine.same_data import compare_data, write_data
from dualfuse.engine.same_recipe import BEST, CHECKPOINTS, FINAL, is_finished, write_recipe
from dualfuse.engine.sharded_checkpoint import ShardedCheckpoints
from dualfuse.engine.start import begin_with, check_start, freeze, freeze_unreached
from dualfuse.recipe import Recipe, Run
from dualfuse.tasks.base import Batch, Task

ALIKE = 1  # keeps the stream that all processes draw from apart from those of each


def train(recipes: Sequence[Recipe], out: Path) -> Path:
    """Runs recipes in order, each in its own folder, and gives the folder of the last model.

    A finished recipe is skipped, an unfinished one goes on at its last checkpoint. A single recipe uses ``out``
    itself, several use ``out``/name. Raises ``ValueError`` before the first step where a folder holds another
    recipe's run or data is missing, and for a start that does not fit.
    """
    folders = {recipe.name: out if len(recipes) == 1 else out / recipe.name for recipe in recipes}
    if len(folders) < len(recipes):
        raise ValueError(f"recipes run one after the other need different names, not {[r.name for r in recipes]}")
    trust(tuple(recipes))
    keep_big_blocks()
    with dist.processes(max(recipe.run.patience for recipe in recipes)) as device:
        recipes = with_tokenizers(recipes, {name: folder / FINAL for name, folder in folders.items()})
        todo = [recipe for recipe in recipes if not is_finished(recipe, folders[recipe.name])]
        for recipe in todo:
            check_data(recipe)
            if checkpoint.latest(folders[recipe.name] / CHECKPOINTS):
                compare_data(folders[recipe.name], open_sets(recipe, recipe.data.train))
            else:
                check_start(recipe, next((earlier for earlier in recipes if earlier.name == recipe.start_from), None))
        for recipe in recipes:
            if recipe in todo:
                earlier = folders.get(recipe.start_from)
                start = str(earlier / FINAL) if earlier else recipe.start_from
                _run(recipe, folders[recipe.name], start, device)
            else:
                say(f"{recipe.name}: finished before, in {folders[recipe.name] / FINAL}")
    return folders[recipes[-1].name] / FINAL


def _run(recipe: Recipe, out: Path, start: str, device: torch.device) -> None:
    share_cores(recipe.data.workers)
    torch.manual_seed(recipe.run.seed)
    task = recipe.build()
    newest = checkpoint.latest(out / CHECKPOINTS)
    if start and not newest:
        begin_with(task, recipe, start, out)
    freeze(task, recipe.train_only)
    freeze_unreached(task.to(device), to_device(first_rows(recipe), device))
    _arrange(task, recipe.run, device)
    optimizer = build_optimizer(task, recipe.optim)
    step, extra = checkpoint.restore(newest, task, optimizer) if newest else (0, {})
    check_passes(recipe, extra)
    write_recipe(recipe, out)
    if not newest:
        write_data(out, recipe.data.train, open_sets(recipe, recipe.data.train))
    sharded = ShardedCheckpoints() if dist.is_sharded(task) else None
    state = State(recipe, out, task, optimizer, step, Best.restored(recipe.run.best, extra), sharded)
    fit(state, dist.wrap(task, device), on_device(deliveries(recipe, start=step), device))
    state.settle()
    state.save_model(FINAL)


def _arrange(task: Task, run: Run, device: torch.device) -> None:
    """Compiles, recomputes and shards the units of a model, from the inside out."""
    if run.compile:
        compile_each(task.model.units())
    if run.recompute:
        recompute(task.model.units())
    if run.shard:
        dist.shard(task, task.model.units(), device, half=run.precision == "bf16")


@dataclass
class State:
    """Everything the loop changes or saves."""

    recipe: Recipe
    out: Path
    task: Task
    optimizer: torch.optim.Optimizer
    step: int
    best: Best
    sharded: ShardedCheckpoints | None
    """What writes checkpoints of a task that is shared out."""

    @property
    def device(self) -> torch.device:
        """Where the task is."""
        return next(self.task.parameters()).device

    def save(self) -> None:
        """Writes a checkpoint, from the first process; ``ValueError`` if the weights are no numbers any more.

        One of a task that is shared out is written by all processes, while they go on.
        """
        broken = [name for name, weight in self.task.named_parameters() if not dist.own(weight).isfinite().all()]
        if dist.anywhere(bool(broken)):
            some = f"{len(broken)} weights, such as {broken[0]}," if broken else "weights that another process holds"
            raise ValueError(
                f"training has failed: after step {self.step} {some} are nan or infinite. Earlier checkpoints are "
                "kept; go on from one with a lower optim.lr, or with optim.clip 1"
            )
        what = self.step, self.task, self.optimizer, self.best.extra() | passes(self.recipe), self.recipe.run.keep
        if self.sharded is not None:
            self.sharded.save(self.out / CHECKPOINTS, *what)
        elif dist.rank() == 0:
            checkpoint.save(self.out / CHECKPOINTS, *what)
        dist.barrier()

    def save_model(self, name: str) -> None:
        """Writes a model folder beside the checkpoints, from the first process."""
        weights = dist.gathered(self.task)
        if dist.rank() == 0:
            write_card(hub.save(self.out / name, self.task, self.recipe, weights))
        dist.barrier()

    def settle(self) -> None:
        """Waits until the last checkpoint is on disk."""
        if self.sharded is not None:
            self.sharded.wait()
        dist.barrier()


def fit(state: State, forward: nn.Module, stream: Iterator[Delivery]) -> None:
    """Trains until the recipe's last step; ``forward`` is the task or its distributed wrap.

    The tensors of ``stream`` are on the task's device.
    """
    recipe, run = state.recipe, state.recipe.run
    state.task.train()
    ledger = Ledger(state.out / f"rank-{dist.rank()}" if dist.rank() else state.out, state.step)
    with Log(state.out, steps=run.steps, start=state.step, tensorboard=run.tensorboard) as log, stop_asked() as stop:
        guard = Guard(run.nonfinite, partial(keys_at, recipe), log, ledger)
        while state.step < run.steps:
            rate = learning_rate(recipe.optim, state.step, run.steps)
            set_learning_rate(state.optimizer, rate)
            for micro, delivery in enumerate(islice(stream, micro_steps(recipe))):
                numbers = accumulate(state, forward, delivery.batch, micro)
                log.add(numbers)
                guard.watch(numbers)
                for skipped in delivery.skipped:
                    ledger.append(state.step + 1, skipped.key, skipped.reason, skipped.stand_in)
                log.add({"count/skipped": len(delivery.skipped)})
            norm = clip_gradients(state.task, recipe.optim.clip)
            if guard.passes(norm, state.step + 1):
                state.optimizer.step()
            state.optimizer.zero_grad()
            state.step += 1
            log.add({"gradient_norm": norm, "count/samples": recipe.data.batch // dist.world()})
            stopping = dist.largest(stop.asked)
            saving = due(state.step, run.save_every, run.steps) or stopping > 0
            if due(state.step, run.log_every, run.steps) or saving:  # a resumed log counts from its last line
                log.write(state.step, lr=rate)
                guard.check()
            if recipe.data.validation and due(state.step, run.eval_every, run.steps):
                guard.check()
                found = validate(state)
                log.write(state.step, **{f"validation/{name}": value for name, value in found.items()})
                state.best = keep_best(state.best, found, state.step, partial(state.save_model, BEST))
            if saving:
                state.save()
            if stopping:
                state.settle()
                raise Interrupted(f"stopped after step {state.step}; the same command goes on from there", stopping)


def accumulate(state: State, forward: nn.Module, batch: Batch, micro: int) -> Mapping[str, Tensor]:
    """Adds the gradients of one micro-batch, and gives its log.

    The loss of a step is the mean over its micro-batches, each of which stands for itself, over all processes:
    contrast and hard negatives do not look beyond it, and words weigh alike within it. Only where every micro-batch
    has as many masked words is the gradient of the words that of the whole batch.
    """
    run, steps = state.recipe.run, micro_steps(state.recipe)
    seed_step(run, state.step, micro)
    with dist.sync_gradients(forward, when=micro == steps - 1):
        with torch.autocast(state.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            output = forward(batch)
        (output.loss / steps).backward()
    return output.log


def due(step: int, every: int, steps: int) -> bool:
    """Tells whether something that happens every so many steps, and at the end, happens now."""
    return step == steps or (every > 0 and step % every == 0)


def seed_step(run: Run, step: int, micro: int) -> None:
    """Makes what is drawn a function of seed and step, so that resuming needs no random state.

    Dropout and drop-path are drawn by each process for itself, wrong pairs alike for any number of them.
    """
    torch.manual_seed(_seed(run.seed, step, micro, dist.rank()))
    dist.seed_alike(_seed(run.seed, step, micro, 0, ALIKE))


def _seed(*numbers: int) -> int:
    words = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def validate(state: State) -> dict[str, float]:
    """Evaluates the task as it is now, on the recipe's validation set; every process does, so that none has to wait."""
    data, task = state.recipe.data, state.task
    prep = replace(data.prep(), image=replace(data.image, augment=None))
    plan = Plan(rerank=state.recipe.run.eval_rerank, workers=data.workers)
    with dist.between_steps(task), uncompiled() if state.recipe.run.compile else nullcontext():
        found = judge(hub.Loaded(task.eval(), prep, state.recipe), data.validation, plan).metrics
    task.train()
    return found
