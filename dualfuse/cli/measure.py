"""``dualfuse measure``: what a recipe costs, before its first hour."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict

from dualfuse.cli.console import echo
from dualfuse.cli.parser import help_end
from dualfuse.cli.train import given, override

EXAMPLES = """
dualfuse measure vlmo-nano-pairs
dualfuse measure fuse --start-from models/clip --batch-sizes 32 64 128
dualfuse measure vlmo-base-pairs --batch-sizes 8 16 --run.precision bf16 --json
dualfuse measure fuse --start-from models/clip --towers.image.mode lora --data.train 'data/train-*.tar'
"""


def run(words: Sequence[str]) -> None:
    """Measure parameters, memory and speed of a recipe.

    A few training steps are run for each batch size, each in a process of its own, with random weights: on the data of
    --data.train, or on random images and texts. The other flags are those of dualfuse train.
    """
    parsed, flags = _parser().parse_known_args(words)

    from dualfuse import recipes
    from dualfuse.progress import track
    from dualfuse.training.measure import count_parameters, measure

    results = []
    chosen = override(recipes.find_recipe(parsed.name, **given(flags)), flags, prog=f"dualfuse measure {parsed.name}")
    for recipe in chosen:
        total, full = count_parameters(recipe), recipe.data.batch_size
        sizes, measurements = parsed.batch_sizes or sorted({max(1, full // 4), max(1, full // 2), full}), []
        for measurement in track(measure(recipe, sizes, parsed.steps), total=len(sizes), what="batch sizes"):
            if not (parsed.json or measurements):
                share = f", {measurement.trained:,} trained ({100 * measurement.trained / total:.1f} %)"
                echo(f"{recipe.name}: {total:,} parameters{share if measurement.trained else ''}")
            if not parsed.json:
                echo(f"  {measurement.line()}")
            measurements.append(asdict(measurement))
        results.append({"recipe": recipe.name, "parameters": total, "batches": measurements})
    if parsed.json:
        echo(json.dumps(results, indent=1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dualfuse measure",
        description=inspect.getdoc(run),
        epilog=help_end(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="RECIPE", help="recipe, in the forms of dualfuse train")
    parser.add_argument(
        "--batch-sizes",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="batch sizes to measure (default: a quarter, half and all of the recipe's)",
    )
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="timed steps of each (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    return parser
