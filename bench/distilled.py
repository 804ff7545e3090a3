"""VLMo-nano from scratch against VLMo-nano that a teacher taught first, by processor seconds.

The teacher is a model of the recipe starter, the data that of the demo; --texts adds files of text without images to
the distillation. Both students then train with ITC, ITM and MLM. From scratch, ITC alone takes the place of the
distillation, as in the demo. Evaluation is on the test split, and not part of the seconds.
``python bench/distilled.py --teacher runs/demo-seeds/seed-1/starter/best --texts wordnet-train.txt --seed 1``
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from dualfuse import hub
from dualfuse.data.shards.shards import Shards
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.recipe import Recipe
from dualfuse.recipes import distilled, small_pairs
from dualfuse.run_folder import FINAL
from dualfuse.training.loop import train

DATA = "examples/openpics-mini/*-{split}-*.tar"


@dataclass(frozen=True)
class Options:
    """Teacher, data and length of a comparison; runs that are finished are not repeated."""

    teacher: Path
    texts: tuple[str, ...] = ()
    """Files of text without images; half of the batch is theirs."""
    seed: int = 1
    first_steps: int = 500
    """Steps of distillation, or of ITC."""
    joint_steps: int = 150
    """Steps with ITC, ITM and MLM after it."""
    scratch: bool = False
    """Train from scratch: steps of ITC take the place of the distillation."""
    out: Path = Path("runs/distilled")


def stages(options: Options) -> tuple[Recipe, Recipe]:
    """Return both recipes with data, seed and steps."""
    first, joint = small_pairs.demo() if options.scratch else distilled.nano()
    if not options.scratch:
        first = replace(first, task=replace(first.task, teacher=str(options.teacher)))
    pairs, texts = (DATA.format(split="train"),), () if options.scratch else options.texts
    weights = (float(len(texts)), *(1.0 for _ in texts)) if texts else ()
    return (
        replace(
            first,
            data=replace(first.data, train=pairs + texts, weights=weights, validation=""),
            run=replace(first.run, seed=options.seed, steps=options.first_steps, eval_every=0),
        ),
        replace(
            joint,
            data=replace(joint.data, train=pairs, validation=""),
            run=replace(joint.run, seed=options.seed, steps=options.joint_steps, eval_every=0, eval_rerank=0),
        ),
    )


def processor_seconds() -> float:
    """Return the processor time of this process and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(folder: Path) -> dict[str, float]:
    """Return the recall of a model on the test split, in percent."""
    loaded = hub.load(folder)
    data = EvaluationData(Shards.open(DATA.format(split="test")), loaded.processor)
    metrics = loaded.task.evaluate(data, Plan(rerank=0, num_workers=0)).metrics
    return {name: round(100 * value, 1) for name, value in metrics.items() if "R@" in name}


def main(options: Options) -> None:
    """Train both stages, and print a line of JSON for each."""
    recipes, out = stages(options), options.out / f"{'scratch' if options.scratch else 'distilled'}-{options.seed}"
    for number, recipe in enumerate(recipes, 1):
        before = processor_seconds()
        train(recipes[:number] if number > 1 else (recipe,), out if number > 1 else out / recipe.name)
        seconds = processor_seconds() - before
        result = {"seed": options.seed, "stage": recipe.name, "steps": recipe.run.steps, "seconds": round(seconds, 1)}
        print(json.dumps(result | measure(out / recipe.name / FINAL)), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
