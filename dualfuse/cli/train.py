"""``dualfuse train``: its flags are the fields of the recipe."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from dataclasses import field, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dualfuse.cli.console import echo
from dualfuse.cli.parser import help_end, parse
from dualfuse.errors import DualfuseError

if TYPE_CHECKING:
    from dualfuse.recipe import Recipe

EXAMPLES = """
dualfuse train ten-seconds --out runs/first
dualfuse train vlmo-nano-pairs --data.train 'data/train-*.tar' --data.validation 'data/val-*.tar'
dualfuse train mine.yaml --optim.lr 1e-4
dualfuse train runs/first/final --out runs/second --data.train 'data/train-*.tar' --optim.lr 1e-5
torchrun --nproc-per-node 8 -m dualfuse train vlmo-base-pairs --data.train 'data/train-*.tar'
"""
FREQUENT = {
    "data.train": ("SHARDS ...", "training data: tar files, folders or patterns"),
    "data.validation": ("SHARDS", "data to evaluate on during training"),
    "data.batch_size": ("N", "samples per optimizer step, over all processes"),
    "data.num_workers": ("N", "data loader processes per training process"),
    "optim.lr": ("X", "peak learning rate"),
    "run.steps": ("N", "optimizer steps; replaces the epochs of a recipe"),
    "run.epochs": ("X", "passes over the training data, from which the steps are computed; 0: run.steps counts"),
    "run.micro_batch": ("N", "samples per process and forward pass; 0: one pass per step"),
    "run.precision": ("P", "fp32 or bf16"),
    "run.eval_every": ("N", "steps between evaluations; 0: only at the end"),
    "run.best": ("METRIC", "validation metric that selects OUT/best"),
    "towers.image.mode": ("MODE", "image tower: full, frozen, last or lora"),
    "towers.text.mode": ("MODE", "text tower: full, frozen, last or lora"),
    "run.seed": ("N", "seed of initialization, data order and dropout"),
    "start_from": ("MODEL", "initial weights: model folder or checkpoint"),
}
"""The flags that people change most: their value and meaning, in the order of the help."""


def run(words: Sequence[str]) -> None:
    """Train a recipe; each of its fields is a typed flag.

    Rerunning the command of an interrupted run resumes it at its last checkpoint.
    """
    parser = argparse.ArgumentParser(
        prog="dualfuse train",
        description=f"{inspect.getdoc(run)}\n\nThe flags depend on the recipe: dualfuse train NAME --help lists them.",
        epilog=help_end(EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=not words or words[0].startswith("-"),
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help="recipe by name (see dualfuse recipes), .yaml or .json file, model folder, path/file.py:function, or "
        "module:function",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME)")
    parsed, flags = parser.parse_known_args(words)

    from dualfuse import recipes
    from dualfuse.recipes.files import is_recipe_file
    from dualfuse.recipes.inherited import inherited
    from dualfuse.training.loop import train

    found = recipes.find_recipe(parsed.name, **given(flags))
    chosen = override(found, flags, prog=f"dualfuse train {parsed.name}")
    if found[0].start_from == str(Path(parsed.name)) and (lines := inherited(found[0], chosen[0])):
        echo("\n".join([f"settings of {parsed.name} that this run keeps:", *lines]), to_stderr=True)
    name = Path(parsed.name).stem if is_recipe_file(parsed.name) else parsed.name.rpartition(":")[2]
    for recipe in chosen:
        _check_start(recipe)
    out = parsed.out or Path("runs") / name
    echo(f"model: {train(chosen, out)}")


def _check_start(recipe: Recipe) -> None:
    """Raise ``DualfuseError`` for towers that are frozen with random weights."""
    if not recipe.start_from and "frozen" in (recipe.towers.image.mode, recipe.towers.text.mode):
        raise DualfuseError(
            f"recipe {recipe.name} freezes a tower, which would keep its random weights; give --start-from MODEL: a "
            "model folder, a checkpoint, or a name on the Hugging Face hub such as openai/clip-vit-base-patch32"
        )


def given(flags: Sequence[str]) -> dict[str, str]:
    """Return the values of flags that a recipe may depend on, by the names of the parameters of its function."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--start-from", "--start_from", dest="start_from", default="")
    parser.add_argument("--data.validation", dest="validation", default="")
    return vars(parser.parse_known_args(flags)[0])


def override(recipes: tuple[Recipe, ...], flags: Sequence[str], *, prog: str) -> tuple[Recipe, ...]:
    """Return the recipes with the values of typed flags: --optim.lr 1e-4, or --pairs.optim.lr 1e-4 for several stages.

    Invalid flags end the program with an explanation, ``--help`` with all flags and their defaults.
    """
    from dualfuse.recipe import Recipe
    from dualfuse.upgrade import stage_flag

    stages = [recipe.name.replace("-", "_") for recipe in recipes]
    if len(set(stages)) < len(stages) or not all(map(str.isidentifier, stages)):
        raise DualfuseError(
            f"stages need different names of letters, digits and -, but they are called {', '.join(stages)}"
        )
    flags = [stage_flag(flag, stages) for flag in flags]
    options = {"prog": prog, "examples": EXAMPLES, "description": frequent_flags(recipes)}
    if len(recipes) == 1:
        return (_with_length(parse(Recipe, flags, default=recipes[0], **options), flags),)
    several = [(name, Recipe, field(default=recipe)) for name, recipe in zip(stages, recipes, strict=True)]
    parsed = vars(parse(make_dataclass("Stages", several, frozen=True), flags, **options))
    return tuple(_with_length(recipe, flags, f"{name}.") for name, recipe in parsed.items())


def _with_length(recipe: Recipe, flags: Sequence[str], stage: str = "") -> Recipe:
    """Return the recipe without epochs where a flag gives steps: the flag is the later word.

    Raises ``DualfuseError`` if both are given.
    """
    names = {flag.removeprefix("--").partition("=")[0].replace("-", "_") for flag in flags}
    for steps, epochs in (("steps", "epochs"), ("eval_every", "eval_epochs")):
        if f"{stage}run.{steps}" in names:
            if f"{stage}run.{epochs}" in names:
                raise DualfuseError(f"--{stage}run.{steps} and --{stage}run.{epochs} are both given; omit one")
            recipe = replace(recipe, run=replace(recipe.run, **{epochs: 0.0}))
    return recipe


def frequent_flags(recipes: tuple[Recipe, ...]) -> str:
    """Return the first part of the help of ``recipes``: the flags that people change most, with their defaults."""
    prefix = "STAGE." if len(recipes) > 1 else ""
    lines = [("--out DIR", "folder of the run (default: runs/NAME)")]
    for path, (value, meaning) in FREQUENT.items():
        defaults = dict.fromkeys(filter(None, (_default(recipe, path) for recipe in recipes)))
        shown = f" (default: {', '.join(defaults)})" if defaults else ""
        lines.append((f"--{prefix}{path.replace('_', '-')} {value}", meaning + shown))
    width = max(len(flag) for flag, _ in lines)
    stages = ", ".join(recipe.name for recipe in recipes)
    heading = f"Flags that are changed most often, with STAGE one of {stages}:" if prefix else "Frequent flags:"
    return "\n".join([heading, *(f"  {flag:{width}}  {meaning}" for flag, meaning in lines), "", "All flags:"])


def _default(recipe: Recipe, path: str) -> str:
    value: object = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return " ".join(value) if isinstance(value, tuple) else str(value)
