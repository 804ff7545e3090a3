"""What the loop changes and saves: checkpoints, and the model folders of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dualfuse import distributed as dist
from dualfuse import hub
from dualfuse.card import write_card
from dualfuse.checksums import unwritten_files
from dualfuse.config import JSON
from dualfuse.errors import DualfuseError
from dualfuse.io import listing, remove_folder
from dualfuse.layers.lora import merge_lora
from dualfuse.recipe import Recipe
from dualfuse.run_folder import CHECKPOINTS, FINAL, LAST, STEP
from dualfuse.tasks.base import Task
from dualfuse.training import checkpoint
from dualfuse.training.best_model import BestModel
from dualfuse.training.init_from import origins
from dualfuse.training.resume_checks import batch_division
from dualfuse.training.run_log import STATE
from dualfuse.training.sharded_checkpoint import ShardedCheckpoints

logger = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Everything that the loop changes or saves."""

    recipe: Recipe
    out: Path
    task: Task
    optimizer: torch.optim.Optimizer
    step: int
    best: BestModel
    sharded: ShardedCheckpoints | None
    """The writer of checkpoints of a sharded task; None if the task is not sharded."""
    log: JSON = None
    """The state of the log in the checkpoint that the run resumes from."""

    def save(self, log: JSON) -> None:
        """Write a checkpoint with the state of the log; all processes must call this.

        The first process writes it; a checkpoint of a sharded task is written by all, in the background. Raises
        ``DualfuseError`` if a weight is not finite.
        """
        broken = [
            name for name, weight in self.task.named_parameters() if not dist.local_tensor(weight).isfinite().all()
        ]
        if dist.any_rank(bool(broken)):
            some = f"{len(broken)} weights, such as {broken[0]}," if broken else "weights on another process"
            raise DualfuseError(
                f"training has failed: after step {self.step} {some} are nan or infinite. Earlier checkpoints are "
                "kept; resume from one with a lower optim.lr, or with optim.grad_clip_norm 1"
            )
        extra = self.best.extra() | batch_division(self.recipe) | {STATE: log}
        content = (self.step, self.task, self.optimizer, extra, self.recipe.run.keep_last)
        if self.sharded is not None:
            self.sharded.save(self.out / CHECKPOINTS, *content)
        elif dist.rank() == 0:
            checkpoint.save(self.out / CHECKPOINTS, *content)
        dist.barrier()

    def save_model(self, name: str, notes: Mapping[str, JSON] | None = None) -> None:
        """Write a model folder beside the checkpoints; all processes must call this, and the first one writes.

        ``notes`` are written into the folder as JSON files, by name, beside the step.
        """
        weights = dist.gathered_parameters(self.task)
        if dist.rank() == 0:
            notes = {STEP: {"step": self.step}, **origins(self.out), **(notes or {})}
            hub.save(self.out / name, self.task, self.recipe, merge_lora(self.task, weights), notes, write_card)
        dist.barrier()

    def settle(self) -> None:
        """Wait until the last checkpoint is on disk."""
        if self.sharded is not None:
            self.sharded.wait()
        dist.barrier()

    def save_last(self) -> str:
        """Write the model of a stopped run, after its checkpoint is on disk; all processes must call this.

        Return how the run resumes and where the model is. A disk that is full of the checkpoint is no error.
        """
        folder = self.out / LAST
        weights = dist.gathered_parameters(self.task)
        problem = "" if dist.rank() else _obstacle(folder)
        if dist.rank() == 0 and not problem:
            try:
                notes: dict[str, JSON] = {STEP: {"step": self.step}}
                hub.save(folder, self.task, self.recipe, merge_lora(self.task, weights), notes, write_card)
            except OSError as error:
                problem = f"{error}; the checkpoint is complete"
        dist.barrier()
        stopped = f"stopped after step {self.step}; run the same command to resume."
        if dist.rank():
            return stopped
        if problem:
            return f"{stopped} {folder} was not written: {problem}, and dualfuse export {self.out} makes a model of it"
        return f"{stopped} The model after this step is {folder}: dualfuse evaluate {folder} DATA"

    def finish(self) -> None:
        """Write the final model, which supersedes the one of an earlier stop; all processes must call this."""
        self.save_model(FINAL)
        folder = self.out / LAST
        if dist.rank() == 0 and folder.exists():
            if obstacle := _obstacle(folder):
                logger.warning("%s, of an earlier stop, is kept: %s", folder, obstacle)
            else:
                remove_folder(folder)
        dist.barrier()


def _obstacle(folder: Path) -> str:
    """Return why a model folder of an earlier stop must not be replaced; empty if it may, or if there is none."""
    if not folder.exists():
        return ""
    if not (folder / STEP).is_file():
        return "training did not write the files there"
    others = unwritten_files(folder)
    return f"{listing(others)} there is not as it was written" if others else ""
