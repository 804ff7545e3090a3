"""CPU seconds of training a fusion encoder over CLIP ViT-B/32 with random weights, with and without stored states.

Run: python bench/stored_states.py [SHARDS] (default: the 383 validation images of examples/openpics-mini). Prints the
seconds before the first step (with stored states: of the passes through both towers) and those of a step of 32 pairs.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from dualfuse import recipes
from dualfuse.recipe import Recipe
from dualfuse.training import loop

SHARDS = "examples/openpics-mini/*-val-*.tar"
STEPS = 5


def main() -> None:
    """Print one line each: stored states that are computed first, stored states that are there, no stored states."""
    torch.set_num_threads(1)
    (recipe,) = recipes.find_recipe("fuse")
    data = replace(recipe.data, train=(sys.argv[1] if len(sys.argv) > 1 else SHARDS,), batch_size=32, num_workers=0)
    run = replace(recipe.run, epochs=0.0, eval_epochs=0.0, steps=STEPS, eval_rerank=0)
    recipe = replace(recipe, data=data, run=run)
    without = replace(recipe, towers=replace(recipe.towers, cache_gb=0.0))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for number, (name, each) in enumerate((("first run", recipe), ("later run", recipe), ("no states", without))):
            before, step = timed(each, Path(folder) / str(number))
            print(f"{name}: {before:.0f} CPU seconds before the first step, {step:.1f} a step of 32 pairs", flush=True)


def timed(recipe: Recipe, out: Path) -> tuple[float, float]:
    """Return the CPU seconds of this process before the first step, and the median of a step."""
    marks, seed_step = [time.process_time()], loop.seed_step

    def marked(*arguments: object, seed: Callable[..., None] = seed_step) -> None:
        marks.append(time.process_time())
        seed(*arguments)

    loop.seed_step = marked
    try:
        loop.train((recipe,), out)
    finally:
        loop.seed_step = seed_step
    first, *steps = (after - before for before, after in pairwise(marks))
    return first, statistics.median(steps)


if __name__ == "__main__":
    main()
