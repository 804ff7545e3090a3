"""The demo from scratch: train a VLMo and a control, evaluate, write a page. Finished parts are skipped."""

from __future__ import annotations

import logging
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import dualfuse
from dualfuse import distributed as dist
from dualfuse import hub
from dualfuse.data.image.image_file import image_suffix
from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.runner import Plan
from dualfuse.files import read_json
from dualfuse.io import write_json
from dualfuse.prepare.pipeline import prepare
from dualfuse.recipe import Recipe
from dualfuse.recipes import small_pairs
from dualfuse.report.curves import history
from dualfuse.report.demo import evaluate
from dualfuse.report.demo.page import write_demo_page
from dualfuse.report.demo.results import RESULTS, DemoResults
from dualfuse.report.demo.wording import duration
from dualfuse.run_folder import FINAL
from dualfuse.training.loop import train

logger = logging.getLogger(__name__)

RERANK = 16
"""Candidates per query that the fusion encoder re-ranks."""
EXAMPLES = Path(dualfuse.__file__).parents[1] / "examples" / "openpics-mini"
AUTHORS = "ATTRIBUTION.txt"
SCRATCH = Path("runs/demo-scratch")
PLAN = Plan(rerank=RERANK, num_workers=0)  # starting loader processes would take longer than reading the test split


@dataclass(frozen=True)
class Setup:
    """The data, the recipes and the output folder of a demo; both models share their first recipe.

    Without recipes of a control none is trained.
    """

    source: Path
    out: Path
    seed: int
    joint: tuple[Recipe, ...]
    control: tuple[Recipe, ...]


def demo(out: Path = SCRATCH, *, seed: int = 1, control: bool = False) -> DemoResults:
    """Train a small VLMo from scratch on the images of the repository, evaluate it, and write OUT/report.html.

    With ``control`` another model trains with ITC only for the same time. Raises ``DualfuseError`` if the package was
    installed without the images.
    """
    check_examples()
    return build(Setup(EXAMPLES, out, seed, small_pairs.demo(), small_pairs.demo_itc() if control else ()))


def check_examples() -> None:
    """Raise ``DualfuseError`` if the package was installed without the images of the demo."""
    if not EXAMPLES.is_dir():
        raise DualfuseError(
            f"the images of the demo are not in {EXAMPLES}, because the package was installed without them; "
            "clone the repository and run the demo there"
        )


def build(setup: Setup) -> DemoResults:
    """Run all parts that are not finished, and return the results."""
    out = setup.out
    joint, control = (tuple(placed(setup, recipe) for recipe in recipes) for recipes in (setup.joint, setup.control))
    prepare_images(setup.source, out)
    with part("train: ITC, then ITC, ITM and MLM", out):
        joint_final = train(joint, out)
    finals = (joint_final,)
    if control:
        with part("train the control: ITC only", out):
            finals = (joint_final, train(control, out))
    with part("evaluate on the test split", out):
        results = _finished(out, finals) or _evaluate(setup, finals)
    write_demo_page(results, out)
    return results


def prepare_images(source: Path, out: Path) -> None:
    """Write the data of a demo, the list of its authors, and the test images as files."""
    with part("prepare the images", out):
        prepare(source, out / "data")
        shutil.copyfile(source / AUTHORS, out / AUTHORS)
        export(Shards.open(out / "data" / "test-*.tar"), out / "images")


def placed(setup: Setup, recipe: Recipe) -> Recipe:
    """Return the recipe with the seed and the data of a demo."""
    return with_data(recipe, setup.out / "data", setup.seed)


def with_data(recipe: Recipe, data: Path, seed: int) -> Recipe:
    """Return the recipe with a seed and the folder of its shards."""
    return replace(
        recipe,
        data=replace(recipe.data, train=(str(data / "train-*.tar"),), validation=str(data / "val-*.tar")),
        run=replace(recipe.run, seed=seed),
    )


@contextmanager
def part(name: str, out: Path) -> Iterator[None]:
    """Log a part and its duration, and record its longest duration in OUT/seconds.json."""
    logger.info("%s", name)
    began = time.perf_counter()
    yield
    took = time.perf_counter() - began
    logger.info("  done in %s", duration(took))
    recorded = seconds(out)
    recorded[name] = max(took, recorded.get(name, 0.0))  # a part that was finished before takes no time
    write_json(out / "seconds.json", recorded)


def seconds(out: Path) -> dict[str, float]:
    """Return the recorded durations of parts, in seconds."""
    path = out / "seconds.json"
    return read_json(path) if path.exists() else {}


def export(test: Shards, folder: Path) -> None:
    """Write the images of the test split as files named by their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(test):
        words = "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in sample.texts[0]).lower().split())
        (folder / f"{number:03d}-{words[:40]}.{image_suffix(sample.image)}").write_bytes(sample.image)


def search_command(out: Path, model: str = f"pairs/{FINAL}") -> str:
    """Return a command that searches the test images."""
    return shlex.join(("dualfuse", "search", str(out / model), str(out / "images"))) + ' "flag of Jamaica"'


def _command(setup: Setup) -> str:
    control = " --control" if setup.control else ""
    return f"dualfuse demo --scratch{control} --out {shlex.quote(str(setup.out))} --seed {setup.seed}"


def _finished(out: Path, finals: Sequence[Path]) -> DemoResults | None:
    """Return the results of an earlier run of the same models; None if one is newer."""
    path = out / RESULTS
    if not path.exists() or any((final / hub.CONFIG).stat().st_mtime > path.stat().st_mtime for final in finals):
        return None
    results = DemoResults.load(out)
    return results if bool(results.control) == (len(finals) > 1) else None


def _evaluate(setup: Setup, finals: Sequence[Path]) -> DemoResults:
    out = setup.out
    device = dist.device()
    joint, *others = (hub.load(final, device=device) for final in finals)
    control = others[0] if others else None
    test = Shards.open(out / "data" / "test-*.tar")
    began = time.perf_counter()
    retrieval, fusion = evaluate.metrics(joint, control, test, PLAN)
    queries = evaluate.queries(joint, test, PLAN)
    masked = evaluate.masked_words(joint, test)
    histories = [
        tuple(history(out / recipe.name, recipe.name) for recipe in recipes) for recipes in (setup.joint, setup.control)
    ]
    parts = {"prepare the images": seconds(out)["prepare the images"]}
    parts |= {f"train {stage.name}": stage.seconds for stages in histories for stage in stages}
    parts["evaluate on the test split"] = time.perf_counter() - began
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
        parts=tuple((name, round(took, 2)) for name, took in parts.items()),
        commands=(_command(setup), search_command(out)),
        machine=evaluate.machine(device),
    )
    results.save(out)
    return results
