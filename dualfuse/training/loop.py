"""Training: ``train`` runs recipes in order, and ``fit`` is the loop."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dualfuse import distributed as dist
from dualfuse import hub
from dualfuse.config import trust
from dualfuse.data.loader import LoadedBatch, to_device
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.notes import reranking_notes
from dualfuse.evaluation.runner import Plan, evaluate
from dualfuse.io import remove_unfinished
from dualfuse.lock import lock
from dualfuse.provenance import record
from dualfuse.recipe import Recipe, Run
from dualfuse.run_folder import BEST, FINAL
from dualfuse.tasks.base import Batch, Task
from dualfuse.training import checkpoint
from dualfuse.training.best_model import check_best, keep_best, new_comparison
from dualfuse.training.calibrate_run import calibrate_run
from dualfuse.training.dataloader import (
    check_data,
    limit_threads,
    micro_steps,
    open_sets,
    probe_batch,
)
from dualfuse.training.epochs import with_steps
from dualfuse.training.freeze import check_depends, freeze, freeze_unused, has_fixed_graph, report_trainable
from dualfuse.training.host_state import host_state
from dualfuse.training.init_from import check_init_from, init_from
from dualfuse.training.label_names import with_labels
from dualfuse.training.memory import keep_big_blocks, uncompiled, wrap_blocks
from dualfuse.training.mining import check_mining, keys_of_step, mined_dataloader
from dualfuse.training.nonfinite import NonfiniteGuard
from dualfuse.training.optim import build_optimizer, clip_grad_norm, learning_rate, set_learning_rate
from dualfuse.training.prefetch import prefetch
from dualfuse.training.resume_checks import (
    check_batch_division,
    check_data_is_unchanged,
    is_finished,
    write_data,
    write_recipe,
)
from dualfuse.training.resume_point import check_folder, check_stages, is_past, report_steps, resume_point
from dualfuse.training.run_log import STATE, Log, SkippedLog
from dualfuse.training.sharded_checkpoint import ShardedCheckpoints
from dualfuse.training.signals import Interrupted, stop_requested
from dualfuse.training.start_notes import note_differences
from dualfuse.training.store_states import evaluation_processor, use_stored_states
from dualfuse.training.text_positions import with_long_texts
from dualfuse.training.tokenizer_stages import with_tokenizers
from dualfuse.training.tower_modes import check_towers, set_tower_modes, tower_rates
from dualfuse.training.trackers import open_trackers
from dualfuse.training.train_state import TrainState

logger = logging.getLogger(__name__)

SHARED = 1  # separates the random stream that all processes share from the stream of each


def train(recipes: Sequence[Recipe], out: Path) -> Path:
    """Run recipes in order, each in its own folder, and return the folder of the last model.

    A finished recipe is skipped, and an unfinished one resumes from its newest checkpoint; ``run.steps`` may differ
    from that of the run so far. A single recipe uses the folder ``out``, several use ``out``/name. A task without
    labels takes those of labels.txt beside its training data. Raises ``DualfuseError`` before the first step if ``out``
    is in use by another process, if a folder contains the run of another recipe or files that no run wrote, if data is
    missing, or if the initial weights do not fit.

    In the main thread Ctrl-C and SIGTERM stop the run after a step with ``KeyboardInterrupt``; in another thread no
    signal is handled. The malloc limits of the process are changed; random states, the number of threads, the default
    dtype and signal handlers are restored at the end.
    """
    folders = {recipe.name: out if len(recipes) == 1 else out / recipe.name for recipe in recipes}
    if len(folders) < len(recipes):
        raise DualfuseError(f"the recipes of one run need different names, but are called {[r.name for r in recipes]}")
    trust(tuple(recipes))
    keep_big_blocks()
    recipes = [with_long_texts(with_labels(recipe)) for recipe in recipes]
    minutes = max(recipe.run.dist_timeout for recipe in recipes)
    with host_state(), dist.process_group(minutes) as device, ExitStack() as locks:
        recipes = with_tokenizers(recipes, {name: folder / FINAL for name, folder in folders.items()})
        recipes = [with_steps(recipe, folders[recipe.name]) for recipe in recipes]
        finished = all([is_finished(recipe, folders[recipe.name]) for recipe in recipes])
        if dist.rank() == 0 and (not finished or (out / ".lock").exists()):  # which a killed process may have left
            locks.enter_context(lock(out / ".lock", out))
            for folder in folders.values():
                remove_unfinished(folder)
        dist.barrier()
        _run_unfinished(recipes, folders, device)
    return folders[recipes[-1].name] / FINAL


def _run_unfinished(recipes: Sequence[Recipe], folders: Mapping[str, Path], device: torch.device) -> None:
    unfinished = [recipe for recipe in recipes if not is_finished(recipe, folders[recipe.name])]
    check_stages(recipes, folders, unfinished)
    for recipe in unfinished:
        _check(recipe, recipes, folders[recipe.name])
    for recipe in recipes:
        if recipe in unfinished:
            earlier = folders.get(recipe.start_from)
            start = str(earlier / FINAL) if earlier else recipe.start_from
            _run(recipe, folders[recipe.name], start, device)
        else:
            logger.info("%s: already finished, in %s", recipe.name, folders[recipe.name] / FINAL)


def _check(recipe: Recipe, stages: Sequence[Recipe], out: Path) -> None:
    """Raise ``DualfuseError`` for what would fail later, possibly after the hours of an earlier stage."""
    check_best(recipe)
    check_towers(recipe)
    check_mining(recipe)
    check_data(recipe)
    note_differences(recipe)
    check_folder(out)
    if resume_point(recipe, out):
        check_data_is_unchanged(recipe, out)
    else:
        check_init_from(recipe, {stage.name: stage for stage in stages}.get(recipe.start_from))


def _run(recipe: Recipe, out: Path, start: str, device: torch.device) -> None:
    limit_threads(recipe.data.num_workers)
    torch.manual_seed(recipe.run.seed)
    task = recipe.build()
    newest = resume_point(recipe, out)
    if start and not newest:
        init_from(task, recipe, start, out)
    freeze(task, recipe.train_only)
    set_tower_modes(task, recipe.towers)
    is_fixed = _freeze_unused(task.to(device), recipe)
    wrap_blocks(task, recipe.run, device)
    optimizer = build_optimizer(task, recipe.optim, tower_rates(task, recipe.towers))
    step, extra = checkpoint.restore(newest, task, optimizer) if newest else (0, {})
    ends_early = is_past(recipe, out)
    if newest and dist.rank() == 0 and not ends_early:
        checkpoint.tidy(newest, recipe.run.keep_last)  # a process that failed after its last save did not
    check_batch_division(recipe, extra)
    report_steps(recipe, out, step)
    write_recipe(recipe, out)
    report_trainable(task, out)
    if dist.rank() == 0:
        record(out, step, hub.recipe_to_json(recipe))
    if not newest:
        write_data(recipe, out)
    validation = open_sets(recipe, (recipe.data.validation,)) if recipe.run.best else ()
    best = new_comparison(recipe, validation).restored(extra)
    sharded = ShardedCheckpoints() if dist.is_sharded(task) else None
    state = TrainState(recipe, out, task, optimizer, step, best, sharded, extra.get(STATE))
    processor = use_stored_states(task, recipe)
    if not ends_early and not best.is_exhausted(recipe.run, step):
        stream = prefetch(mined_dataloader(task, recipe, out, start=step, processor=processor), device)
        fit(state, dist.wrap(task, device, fixed_graph=is_fixed), stream)
    state.settle()
    state.finish()
    calibrate_run(out, recipe, can_search=task.can_search, device=str(device))


def _freeze_unused(task: Task, recipe: Recipe) -> bool:
    """Freeze the parameters that no batch uses, and return whether every batch uses the same ones."""
    is_fixed = has_fixed_graph(task)
    if is_fixed:
        freeze_unused(task, to_device(probe_batch(recipe), task.device))
    elif recipe.run.fsdp and dist.world_size() > 1:
        raise DualfuseError(
            "run.fsdp needs a gradient of every parameter from every process, which the third-party modules of this "
            "task may not have in each batch; if they have, declare fixed_graph = True in their classes"
        )
    return is_fixed


def fit(state: TrainState, forward: nn.Module, stream: Iterator[LoadedBatch]) -> None:
    """Train until the last step of the recipe.

    ``forward`` is the task or its distributed wrapper; ``stream`` yields micro-batches on the task's device.
    """
    recipe, run = state.recipe, state.recipe.run
    state.task.train()
    skipped_log = SkippedLog(state.out / f"rank-{dist.rank()}" if dist.rank() else state.out, state.step)
    trackers = open_trackers(recipe, state.out, state.step)
    with (
        Log(state.out, steps=run.steps, start=state.step, trackers=trackers, state=state.log) as log,
        stop_requested() as stop,
    ):
        guard = NonfiniteGuard(run.on_nonfinite, partial(keys_of_step, recipe, state.out), log, skipped_log)
        while state.step < run.steps:
            rate = train_step(state, forward, islice(stream, micro_steps(recipe)), guard, log, skipped_log)
            stopping = dist.all_reduce_max(stop.signal_number)
            saving = due(state.step, run.save_every, run.steps) or stopping > 0
            if due(state.step, run.log_every, run.steps):
                log.write(state.step, lr=rate)
                guard.check()
                log.check_skipped(run.max_skipped_share)
            if recipe.data.validation and due(state.step, run.eval_every, run.steps):
                guard.check()
                validate_and_keep_best(state, log)
            if saving:
                guard.check()
                state.save(log.state())
            if stopping:
                state.settle()
                raise Interrupted(state.save_last(), stopping)
            if state.step < run.steps and state.best.is_exhausted(run, state.step):
                end_early(state, log, is_saved=saving)
                break


def end_early(state: TrainState, log: Log, *, is_saved: bool) -> None:
    """Save the checkpoint of the last step, and log why the run ends."""
    if not is_saved:
        state.save(log.state())
    logger.info(
        "the run ends after step %s of %s: in %s evaluations %s was not better than after step %s (run.early_stopping)",
        *(
            f"{state.step:,}",
            f"{state.recipe.run.steps:,}",
            state.recipe.run.early_stopping,
            state.best.by,
            state.best.step,
        ),
    )


def train_step(
    state: TrainState,
    forward: nn.Module,
    micro_batches: Iterator[LoadedBatch],
    guard: NonfiniteGuard,
    log: Log,
    skipped_log: SkippedLog,
) -> float:
    """Take one optimizer step, and return its learning rate."""
    recipe = state.recipe
    rate = learning_rate(recipe.optim, state.step, recipe.run.steps)
    set_learning_rate(state.optimizer, rate)
    for micro, loaded_batch in enumerate(micro_batches):
        values = accumulate(state, forward, loaded_batch.batch, micro)
        guard.watch(values)
        log.add(values)
        log.add_skipped(loaded_batch.skipped)
        skipped_log.extend(state.step + 1, loaded_batch.skipped)
    norm = clip_grad_norm(state.task, recipe.optim.grad_clip_norm)
    if guard.passes(norm, state.step + 1):
        state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    log.add({"grad_norm": norm, "count/samples": recipe.data.batch_size // dist.world_size()})
    return rate


def accumulate(state: TrainState, forward: nn.Module, batch: Batch, micro: int) -> Mapping[str, Tensor]:
    """Accumulate the gradients of one micro-batch, and return its log.

    The loss of a step is the mean over its micro-batches (each taken over all processes). ITC and hard negatives see
    one micro-batch at a time, and the MLM loss is a mean over the masked tokens of each, so it equals that of the whole
    batch only if all micro-batches have the same number of masked tokens.
    """
    run, steps = state.recipe.run, micro_steps(state.recipe)
    seed_step(run, state.step, micro)
    with dist.sync_gradients(forward, when=micro == steps - 1):
        with torch.autocast(state.task.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            output = forward(batch)
        check_depends(output.loss)
        (output.loss / steps).backward()
    return output.log


def due(step: int, every: int, steps: int) -> bool:
    """Return whether ``step`` is the last one or a multiple of ``every`` (0: the last one only)."""
    return step == steps or (every > 0 and step % every == 0)


def seed_step(run: Run, step: int, micro: int) -> None:
    """Make random draws a function of seed and step, so that resuming needs no random state.

    Dropout and drop path are drawn per process, negatives by the shared RNG for any number of processes.
    """
    torch.manual_seed(_seed(run.seed, step, micro, dist.rank()))
    dist.seed_shared_rng(_seed(run.seed, step, micro, 0, SHARED))


def _seed(*numbers: int) -> int:
    words = np.random.SeedSequence(numbers).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def validate_and_keep_best(state: TrainState, log: Log) -> None:
    """Evaluate on the validation set, log the metrics, and save the model if it is the best so far."""
    with log.paused():
        metrics = validate(state)
    log.write_metrics(state.step, {f"validation/{name}": value for name, value in metrics.items()})
    notes = reranking_notes(metrics, state.recipe.run.eval_rerank)
    state.best = keep_best(state.best, metrics, state.step, lambda best: state.save_model(BEST, {**notes, **best}))


def validate(state: TrainState) -> Mapping[str, float]:
    """Evaluate the current task on the recipe's validation set, on every process, so that none has to wait."""
    data, task = state.recipe.data, state.task
    plan = Plan(rerank=state.recipe.run.eval_rerank, num_workers=data.num_workers)
    with dist.between_steps(task), uncompiled() if state.recipe.run.compile else nullcontext():
        metrics = evaluate(
            hub.LoadedModel(task.eval(), evaluation_processor(task, data), state.recipe), data.validation, plan
        ).metrics
    task.train()
    return metrics
