"""Parameters, peak memory and speed of a recipe, from a few real training steps for each batch size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dualfuse import hub
from dualfuse.config import third_party
from dualfuse.errors import DualfuseError
from dualfuse.io import format_size, write_json
from dualfuse.recipe import Recipe

CHILD = "dualfuse.training.measure_steps"
LAST_LINES = 3


@dataclass(frozen=True)
class Measurement:
    """What one batch size costs on this machine."""

    batch_size: int
    trained: int = 0
    """Number of parameters that are trained: neither frozen nor unreached by the loss."""
    peak_memory: int = 0
    """Bytes: of the GPU if there is one, otherwise of the process."""
    samples_per_second: float = 0.0
    stored_samples_per_second: float | None = None
    """Speed over stored states of frozen towers; None: towers are trained."""
    problem: str = ""
    """The reason for which nothing was measured, such as too little memory; empty: none."""

    def line(self) -> str:
        """Return the numbers as text."""
        if self.problem:
            return f"batch {self.batch_size:>5}: {self.problem}"
        text = (
            f"batch {self.batch_size:>5}: {format_size(self.peak_memory):>8}, {self.samples_per_second:.1f} samples/s"
        )
        if self.stored_samples_per_second is None:
            return text
        return f"{text}, {self.stored_samples_per_second:.1f} samples/s over stored states of the towers"


def count_parameters(recipe: Recipe) -> int:
    """Return the number of parameters of a recipe, without building its weights."""
    return sum(parameter.numel() for parameter in recipe.build_on_meta().parameters())


def measure(recipe: Recipe, batch_sizes: Sequence[int], steps: int) -> Iterator[Measurement]:
    """Yield a measurement of each batch size, each in a process of its own, whose memory is that of training alone.

    Every process trains one step to warm up and then ``steps`` steps on one batch: of ``data.train``, or of random
    images and texts if there is none. Weights are random, and nothing is written beside a temporary file.
    """
    if steps < 1 or not batch_sizes or min(batch_sizes) < 1:
        raise DualfuseError(f"steps are {steps}, batch sizes {list(batch_sizes)}; give numbers of 1 or more")
    with tempfile.TemporaryDirectory() as folder:
        for size in batch_sizes:
            run = replace(recipe.run, micro_batch=0, fsdp=False)
            data = replace(recipe.data, batch_size=size, num_workers=0)
            file = Path(folder) / "recipe.json"
            stored = hub.recipe_to_json(replace(recipe, data=data, run=run, start_from="", vl_expert_init="random"))
            write_json(file, stored)
            yield _in_child(file, size, steps, third_party(stored))


def _in_child(file: Path, batch_size: int, steps: int, plugins: Sequence[str]) -> Measurement:
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", CHILD, str(file), str(steps), *plugins]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads)
    if ended.returncode == 0:
        return Measurement(batch_size, **json.loads(ended.stdout.splitlines()[-1]))
    if ended.returncode == 2:  # a DualfuseError: it would be the same for every batch size
        raise DualfuseError(ended.stderr.strip())
    if ended.returncode < 0 or "out of memory" in ended.stderr.lower() or "can't allocate" in ended.stderr:
        return Measurement(batch_size, problem="does not fit into memory")
    return Measurement(batch_size, problem=" ".join(ended.stderr.splitlines()[-LAST_LINES:]))
