"""Measures what a big batch costs at the demo's size, whole and a few rows at a time: python bench/big_batch.py --help

Forward and backward of one step (contrast, matching with hard negatives from the whole batch, masked words) on random
images, each in a process of its own: by how much the step raises the peak of its memory, the images themselves left
out. Freed memory is given back at once, so that the peak is what is in use.
``--plot docs/images/big-batch.png`` draws the curve.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from step import Size, pairs

from dualfuse.recipes.small_pairs import BRIDGETOWER_NANO, NANO
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

MODELS = {"vlmo": NANO, "bridgetower": BRIDGETOWER_NANO}
BACK_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"}

TICKS = (150, 300, 600, 1200, 2400)


@dataclass(frozen=True)
class Options:
    """What is measured."""

    batches: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    grad_cache_chunk: int = 64
    whole_until: int = 1024
    """Largest batch that is also run as a whole."""
    plot: Path | None = None
    one: tuple[Literal["vlmo", "bridgetower"], int, int] | None = None
    """Only print the MiB of one step: model, batch, rows at a time (0: all)."""


def step(name: str, batch: int, rows: int) -> float:
    """Return the MiB by which a step raises the peak of this process."""
    torch.manual_seed(0)
    inputs = pairs(Size(NANO, batch, NANO.text_length), seed=0)
    task: Pairs = replace(PairsConfig(itc_features="unimodal"), grad_cache_chunk=rows).build(MODELS[name].build())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    task(inputs).loss.backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def apart(name: str, batch: int, rows: int) -> float:
    """Return what :func:`step` gives in a process of its own."""
    command = [sys.executable, __file__, "--one", name, str(batch), str(rows)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | BACK_AT_ONCE).stdout
    return float(said)


def draw(path: Path, options: Options, costs: dict[tuple[str, int, int], float]) -> None:
    """Draw memory over batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for name, colour in zip(MODELS, ("tab:blue", "tab:orange"), strict=True):
        for rows, style in ((0, "--o"), (options.grad_cache_chunk, "-o")):
            known = [(batch, mib) for (model, batch, r), mib in costs.items() if (model, r) == (name, rows)]
            label = f"{name}, {'whole' if not rows else f'{rows} rows at a time'}"
            axes.plot(*zip(*known, strict=True), style, color=colour, label=label, markersize=4)
    axes.set(xlabel="pairs in the batch", ylabel="MiB above the images", xscale="log", yscale="log")
    axes.set_xticks(options.batches, [f"{batch:,}" for batch in options.batches])
    axes.set_yticks(TICKS, [f"{mib:,}" for mib in TICKS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def rows_of(options: Options) -> Sequence[tuple[str, int, int]]:
    """List what is run."""
    return [
        (name, batch, rows)
        for name in MODELS
        for batch in options.batches
        for rows in (0, options.grad_cache_chunk)
        if rows or batch <= options.whole_until
    ]


def main() -> None:
    """Print a line per step."""
    options = tyro.cli(Options, description=__doc__)
    if options.one:
        print(step(*options.one))
        return
    costs = {}
    print("| model | pairs | rows at a time | MiB |\n|---|---:|---:|---:|")
    for name, batch, rows in rows_of(options):
        costs[name, batch, rows] = apart(name, batch, rows)
        print(f"| {name} | {batch:,} | {rows or 'all'} | {costs[name, batch, rows]:.0f} |", flush=True)
    if options.plot:
        draw(options.plot, options, costs)


if __name__ == "__main__":
    main()
