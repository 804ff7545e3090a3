"""Training: ``train`` runs recipes in order, ``fit`` is the loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dualfuse import dist, hub
from dualfuse.card import write_card
from dualfuse.data.loader import Delivery
from dualfuse.engine import checkpoint
from dualfuse.engine.cores import share_cores
from dualfuse.engine.evaluate import Plan
from dualfuse.engine.feed import check_data, deliveries, first_rows, micro_steps, to_device
from dualfuse.engine.interrupt import stop_asked
from dualfuse.engine.judge import judge
from dualfuse.engine.log import Ledger, Log, say
from dualfuse.engine.memory import keep_big_blocks, recompute
from dualfuse.engine.optim import build_optimizer, clip_gradients, learning_rate, set_learning_rate
from dualfuse.engine.same_recipe import CHECKPOINTS, FINAL, is_finished, write_recipe
from dualfuse.engine.start import begin_with, check_start, freeze, freeze_unreached
from dualfuse.recipe import Recipe, Run
from dualfuse.tasks.base import Batch, Task


class Interrupted(KeyboardInterrupt):
    """A run was stopped between two steps, after a checkpoint; the same command goes on from there."""


def train(recipes: Sequence[Recipe], out: Path) -> Path:
    """Runs recipes in order, each in its own folder, and gives the folder of the last model.

    A finished recipe is skipped, an unfinished one goes on at its last checkpoint. A single recipe uses ``out``
    itself, several use ``out``/name. Raises ``ValueError`` before the first step where a folder holds another
    recipe's run or data is missing, and for a start that does not fit.
    """
    folders = {recipe.name: out if len(recipes) == 1 else out / recipe.name for recipe in recipes}
    if len(folders) < len(recipes):
        raise ValueError(f"recipes run one after the other need different names, not {[r.name for r in recipes]}")
    keep_big_blocks()
    with dist.processes() as device:
        todo = [recipe for recipe in recipes if not is_finished(recipe, folders[recipe.name])]
        for recipe in todo:
            check_data(recipe)
            if not checkpoint.latest(folders[recipe.name] / CHECKPOINTS):
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
    task = recipe.task.build(recipe.model.build())
    newest = checkpoint.latest(out / CHECKPOINTS)
    if start and not newest:
        begin_with(task, recipe, start, out)
    freeze(task, recipe.train_only)
    freeze_unreached(task.to(device), to_device(first_rows(recipe), device))
    if recipe.run.recompute:
        recompute(task.model.units())
    optimizer = build_optimizer(task, recipe.optim)
    step, _ = checkpoint.restore(newest, task, optimizer) if newest else (0, {})
    write_recipe(recipe, out)
    state = State(recipe, out, task, optimizer, step)
    fit(state, dist.wrap(task, device), deliveries(recipe, start=step))
    if dist.rank() == 0:
        hub.save(out / FINAL, task, recipe)
        write_card(out / FINAL)
    dist.barrier()


@dataclass
class State:
    """Everything the loop changes or saves."""

    recipe: Recipe
    out: Path
    task: Task
    optimizer: torch.optim.Optimizer
    step: int

    @property
    def device(self) -> torch.device:
        """Where the task is."""
        return next(self.task.parameters()).device

    def save(self) -> None:
        """Writes a checkpoint, from the first process; ``ValueError`` if the weights are no numbers any more."""
        broken = [name for name, weight in self.task.named_parameters() if not weight.isfinite().all()]
        if broken:
            raise ValueError(
                f"training has failed: after step {self.step} {len(broken)} weights, such as {broken[0]}, are nan or "
                "infinite. Earlier checkpoints are kept; go on from one with a lower optim.lr, or with optim.clip 1"
            )
        if dist.rank() == 0:
            folder = self.out / CHECKPOINTS
            checkpoint.save(folder, self.step, self.task, self.optimizer, {}, self.recipe.run.keep)
        dist.barrier()


def fit(state: State, forward: nn.Module, stream: Iterator[Delivery]) -> None:
    """Trains until the recipe's last step; ``forward`` is the task or its distributed wrap."""
    recipe, run = state.recipe, state.recipe.run
    state.task.train()
    ledger = Ledger(state.out / f"rank-{dist.rank()}" if dist.rank() else state.out, state.step)
    with Log(state.out, steps=run.steps, start=state.step, tensorboard=run.tensorboard) as log, stop_asked() as stop:
        while state.step < run.steps:
            rate = learning_rate(recipe.optim, state.step, run.steps)
            set_learning_rate(state.optimizer, rate)
            for micro, delivery in enumerate(islice(stream, micro_steps(recipe))):
                log.add(accumulate(state, forward, to_device(delivery.batch, state.device), micro))
                for skipped in delivery.skipped:
                    ledger.append(state.step + 1, skipped.key, skipped.reason, skipped.stand_in)
                log.add({"count/skipped": len(delivery.skipped)})
            norm = clip_gradients(state.task, recipe.optim.clip)
            state.optimizer.step()
            state.optimizer.zero_grad()
            state.step += 1
            log.add({"gradient_norm": norm, "count/samples": recipe.data.batch // dist.world()})
            stopping = dist.anywhere(stop.asked)
            saving = due(state.step, run.save_every, run.steps) or stopping
            if due(state.step, run.log_every, run.steps) or saving:  # a resumed log counts from its last line
                log.write(state.step, lr=rate)
            if recipe.data.validation and due(state.step, run.eval_every, run.steps):
                log.write(state.step, **validate(state))
            if saving:
                state.save()
            if stopping:
                raise Interrupted(f"stopped after step {state.step}; the same command goes on from there")


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
    """Makes dropout and drawing a function of seed, step and process, so that resuming needs no random state."""
    words = np.random.SeedSequence((run.seed, step, micro, dist.rank())).generate_state(2, np.uint32)
    torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def validate(state: State) -> dict[str, float]:
    """Evaluates the task as it is now, on the recipe's validation set; every process does, so that none has to wait."""
    data, task = state.recipe.data, state.task
    prep = replace(data.prep(), image=replace(data.image, augment=None))
    plan = Plan(rerank=state.recipe.run.eval_rerank, workers=data.workers)
    found = judge(hub.Loaded(task.eval(), prep, state.recipe), data.validation, plan).metrics
    task.train()
    return {f"validation/{name}": value for name, value in found.items()}
