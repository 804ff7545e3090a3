"""Re-ranked minus dual R@1 by the number of training pairs: how much data does a fusion encoder over the starter need?

For each number of pairs and each seed: a random part of the training shards, the recipe starter on it, the recipe fuse
on top with the same pairs, and both directions on the test shards with 16 candidates re-ranked. Runs that are finished
are not repeated, and states of the frozen towers are shared by all. A line of JSON for each run, a table at the end:
``python bench/fusion_curve.py --numbers 500 1000 2000 4000 7610 --data 'openpics/openpics-{split}-*.tar'``. Drawn
scenes: ``python examples/scenes.py`` makes shards of the same form.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from means import mean_and_spread

from dualfuse import hub
from dualfuse.data.shards.shards import Shards
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.prepare.shard_writer import ShardWriter
from dualfuse.recipe import Recipe
from dualfuse.recipes.fuse import fuse
from dualfuse.recipes.starter import starter
from dualfuse.run_folder import model_of
from dualfuse.training.loop import train

WAYS = ("text_to_image", "image_to_text")


@dataclass(frozen=True)
class Options:
    """Data and sizes of the curve."""

    data: str = "examples/openpics-mini/*-{split}-*.tar"
    """Shards, with {split} in place of train, val and test."""
    numbers: tuple[int, ...] = (500, 1000, 2000, 3000)
    seeds: tuple[int, ...] = (1, 2, 3)
    views: int = 1
    """Augmented views of each image for the dual encoder."""
    epochs: float = 8.0
    """Epochs of the fusion encoder."""
    rerank: int = 16
    out: Path = Path("runs/fusion-curve")


def part(options: Options, number: int, seed: int) -> str:
    """Write ``number`` training samples, drawn with ``seed``, as a shard, and return its pattern."""
    folder = options.out / f"data-{number}-{seed}"
    if not (folder / "complete").exists():
        samples = Shards.open(options.data.format(split="train"))
        chosen = np.random.default_rng(seed).permutation(len(samples))[:number]
        writer = ShardWriter(folder, "part-train")
        for index in sorted(chosen.tolist()):
            writer.add(replace(samples[index], key=f"{index:06d}"))
        writer.close()
        (folder / "complete").touch()
    return str(folder / "part-train-*.tar")


def placed(recipe: Recipe, options: Options, pairs: str, seed: int) -> Recipe:
    """Return a recipe with data and seed."""
    data = replace(recipe.data, train=(pairs,), validation=options.data.format(split="val"))
    return replace(recipe, data=data, run=replace(recipe.run, seed=seed))


def measure(options: Options, number: int, seed: int) -> dict[str, float]:
    """Train both models, and return recall in percent and processor seconds."""
    pairs, before = part(options, number, seed), sum(os.times()[:4])
    dual = placed(starter("val"), options, pairs, seed)
    dual = replace(dual, towers=replace(dual.towers, views=options.views))
    folder = options.out / f"dual-{number}-{seed}"
    train((dual,), folder)
    middle = sum(os.times()[:4])
    fused = placed(fuse(str(model_of(folder)), "val"), options, pairs, seed)
    fused = replace(fused, run=replace(fused.run, epochs=options.epochs))
    train((fused,), options.out / f"fused-{number}-{seed}")
    after = sum(os.times()[:4])
    loaded = hub.load(model_of(options.out / f"fused-{number}-{seed}"))
    data = EvaluationData(Shards.open(options.data.format(split="test")), loaded.processor)
    metrics = loaded.task.evaluate(data, Plan(rerank=options.rerank, num_workers=0)).metrics
    recall = {name: round(100 * value, 2) for name, value in metrics.items() if "R@" in name}
    return {"pairs": number, "seed": seed, "dual_s": middle - before, "fuse_s": after - middle, **recall}


def rows(results: list[dict[str, float]]) -> Iterator[str]:
    """Yield the lines of a table: mean and spread of recall, and of the gain."""
    yield "| pairs | direction | dual R@1 | re-ranked R@1 | gain | gain, each seed |\n|---:|---|---:|---:|---:|---|"
    for number in sorted({result["pairs"] for result in results}):
        for way in WAYS:
            runs = [result for result in results if result["pairs"] == number]
            before, after = ([run[f"{way}/{kind}R@1"] for run in runs] for kind in ("", "reranked/"))
            gains = [new - old for old, new in zip(before, after, strict=True)]
            each = " / ".join(f"{gain:+.1f}" for gain in gains)
            cells = " | ".join(mean_and_spread(values) for values in (before, after, gains))
            yield f"| {number:,.0f} | {way.replace('_', ' ')} | {cells} | {each} |"


def main(options: Options) -> None:
    """Measure all points, and print the table."""
    results = []
    for number in options.numbers:
        for seed in options.seeds:
            results.append(measure(options, number, seed))
            print(json.dumps(results[-1]), flush=True)
    print("\n" + "\n".join(rows(results)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
