"""The demo: prepare, train, train a control, judge, and write a page; what is finished is not done again."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

import dualfuse
from dualfuse import distributed as dist
from dualfuse import hub
from dualfuse.data.image.image_file import image_suffix
from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.runner import Plan
from dualfuse.io import write_json
from dualfuse.prepare.pipeline import prepare
from dualfuse.recipe import Recipe
from dualfuse.recipes import small_pairs
from dualfuse.report.curves import History, history
from dualfuse.report.demo import evaluate
from dualfuse.report.demo.page import FUSION, write_demo_page
from dualfuse.report.demo.results import RESULTS, DemoResults, Number
from dualfuse.report.demo.wording import duration, percent, verdicts
from dualfuse.training.loop import train
from dualfuse.training.resume_checks import FINAL

RERANK = 16
"""Candidates per query that the fusion path re-ranks."""
EXAMPLES = Path(dualfuse.__file__).parents[1] / "examples" / "openpics-mini"
AUTHORS = "ATTRIBUTION.txt"
PLAN = Plan(rerank=RERANK, num_workers=0)  # the test split is small: processes would take longer to start


@dataclass(frozen=True)
class Setup:
    """What is trained on what, and where it goes; the two trainings share their first recipe."""

    source: Path
    out: Path
    seed: int
    joint: tuple[Recipe, ...]
    control: tuple[Recipe, ...]


def demo(out: Path = Path("runs/demo"), *, seed: int = 1) -> None:
    """Train a small model on the images that come with the project, judges it, and writes OUT/report.html."""
    if not EXAMPLES.is_dir():
        raise DualfuseError(
            f"the demo's images are not in {EXAMPLES}: the package was installed without them; "
            "clone the repository and run the demo there"
        )
    results = build(Setup(EXAMPLES, out, seed, small_pairs.demo(), small_pairs.demo_contrast()))
    tell(results, out)


def build(setup: Setup) -> DemoResults:
    """Do every part that is not finished, and gives the results."""
    out = setup.out
    joint, control = (tuple(placed(setup, recipe) for recipe in recipes) for recipes in (setup.joint, setup.control))
    with part("prepare the images", out):
        prepare(setup.source, out / "data")
        shutil.copyfile(setup.source / AUTHORS, out / AUTHORS)
    with part("train: contrast, then all objectives", out):
        joint_final = train(joint, out)
    with part("train the control: contrast alone", out):
        control_final = train(control, out)
    with part("judge on the test split", out):
        finals = (joint_final, control_final)
        results = _finished(out, finals) or _judge(setup, finals)
    with part("write images and report", out):
        export(Shards.open(out / "data" / "test-*.tar"), out / "images")
        write_demo_page(results, out)
    return results


def placed(setup: Setup, recipe: Recipe) -> Recipe:
    """Return the recipe with this demo's seed, reading this demo's data."""
    data = setup.out / "data"
    return replace(
        recipe,
        data=replace(recipe.data, train=(str(data / "train-*.tar"),), validation=str(data / "val-*.tar")),
        run=replace(recipe.run, seed=setup.seed),
    )


@contextmanager
def part(name: str, out: Path) -> Iterator[None]:
    """Return what happens and how long it took; the longest time of a part is kept in OUT/seconds.json."""
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold]{name}")
    began = time.perf_counter()
    yield
    took = time.perf_counter() - began
    console.print(f"  done in {duration(took)}")
    known = seconds(out)
    # a part that was finished before takes no time: what it took then is what counts
    known[name] = max(took, known.get(name, 0.0))
    write_json(out / "seconds.json", known)


def seconds(out: Path) -> dict[str, float]:
    """Return the seconds of the parts that are finished."""
    path = out / "seconds.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def export(test: Shards, folder: Path) -> None:
    """Write the images of the test split as plain files with the caption in their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(test):
        words = "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in sample.texts[0]).lower().split())
        (folder / f"{number:03d}-{words[:40]}.{image_suffix(sample.image)}").write_bytes(sample.image)


def tell(results: DemoResults, out: Path) -> None:
    """Print what was reached, and what to try next."""
    found = results.retrieval
    console = Console(highlight=False)
    console.print(f"\n{'test split, R@1':<32}{'text to image':>15}{'image to text':>15}")
    for name, recall in found.rows():
        console.print(f"{name:<32}{percent(recall.text_to_image[0]):>15}{percent(recall.image_to_text[0]):>15}")
    for number in results.fusion:
        console.print(f"{FUSION[number.name]:<60}{percent(number.value):>7}", soft_wrap=True)
    for question, answer in verdicts(found):
        console.print(f"{question} {answer}", soft_wrap=True)
    console.print(f"\nreport: {out / 'report.html'}\ntry:    {search_command(out)}", soft_wrap=True)


def search_command(out: Path) -> str:
    """Return the command that searches the test images."""
    return shlex.join(("dualfuse", "search", str(out / "pairs" / FINAL), str(out / "images"))) + ' "flag of Jamaica"'


def _finished(out: Path, finals: tuple[Path, Path]) -> DemoResults | None:
    """Return the results of an earlier run, unless a model was trained since."""
    path = out / RESULTS
    if not path.exists() or any((final / hub.CONFIG).stat().st_mtime > path.stat().st_mtime for final in finals):
        return None
    return DemoResults.load(out)


def _judge(setup: Setup, finals: tuple[Path, Path]) -> DemoResults:
    out = setup.out
    device = dist.device()
    joint, control = (hub.load(final, device=device) for final in finals)
    test = Shards.open(out / "data" / "test-*.tar")
    began = time.perf_counter()
    retrieval = evaluate.judge_retrieval(joint, control, test, PLAN)
    fusion = evaluate.judge_fusion(joint, test, PLAN)
    queries, masked = evaluate.show_queries(joint, test, PLAN), evaluate.show_masked(joint, test)
    histories = [_histories(recipes, out) for recipes in (setup.joint, setup.control)]
    trained = {stage.name: stage.seconds for stages in histories for stage in stages}
    parts = {"prepare the images": seconds(out)["prepare the images"]}
    parts |= {f"train {name}": took for name, took in trained.items()}
    parts["judge on the test split"] = time.perf_counter() - began
    results = DemoResults(
        seed=setup.seed,
        parameters=sum(parameter.numel() for parameter in joint.task.parameters()),
        train_images=len(Shards.open(out / "data" / "train-*.tar")),
        retrieval=retrieval,
        fusion=fusion,
        joint=histories[0],
        control=histories[1],
        queries=queries,
        masked=masked,
        images=evaluate.images(test, queries, masked),
        parts=tuple(Number(name, round(took, 2)) for name, took in parts.items()),
        commands=(f"dualfuse demo --out {shlex.quote(str(out))} --seed {setup.seed}", search_command(out)),
        machine=evaluate.machine(device),
    )
    results.save(out)
    return results


def _histories(recipes: tuple[Recipe, ...], out: Path) -> tuple[History, ...]:
    return tuple(history(out / recipe.name, recipe.name) for recipe in recipes)
