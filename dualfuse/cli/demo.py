"""``dualfuse demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from dualfuse.cli.parser import Force, check_new
from dualfuse.errors import DualfuseError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dualfuse.report.demo.results import DemoResults, Recall, StarterResults

EXAMPLES = """
dualfuse demo
dualfuse demo --out runs/demo-2 --seed 2
dualfuse demo --scratch --control
"""
STARTED = "data/prepared.json"
"""File that the demo writes before all others."""
WRITTEN = ("ATTRIBUTION.txt", "seconds.json", "results.json", "report.html")
"""Files in the folder of the demo, beside the folders of data, runs and images."""


def run(
    out: Annotated[
        Path | None,
        arg(metavar="DIR", help="folder for data, models and report; default: runs/demo, or runs/demo-scratch"),
    ] = None,
    seed: Annotated[int, arg(help="seed of initialization, data order and dropout")] = 1,
    scratch: Annotated[
        bool, arg(help="train a VLMo from random weights instead, with ITC, ITM and MLM: 10 minutes on two cores")
    ] = False,
    control: Annotated[
        bool, arg(help="with --scratch: also train with ITC only for the same time, and compare")
    ] = False,
    force: Force = False,
) -> None:
    """Train and evaluate image search on the example images of the repository, and write a report.

    Two pre-trained encoders of the extra starter stay frozen, and projections on top of them are trained. A first page
    appears after a quarter of the time. The command can be interrupted at any time; rerunning it resumes.
    """
    from dualfuse.report.demo.run import SCRATCH, demo
    from dualfuse.report.demo.starter_run import OUT, starter_demo

    if control and not scratch:
        raise DualfuseError("--control compares with the model of --scratch; give both")
    out = out or (SCRATCH if scratch else OUT)
    if not (out / STARTED).is_file():  # later files are of an earlier start
        check_new(*(out / name for name in WRITTEN), force=force)
    if scratch:
        print_results(demo(out, seed=seed, control=control), out)
    else:
        print_starter_results(starter_demo(out, seed=seed), out)


def print_starter_results(results: StarterResults, out: Path) -> None:
    """Print the results of the demo, and commands to try next."""
    _print_rows(results.rows)
    _print_next(out, results.commands[1:])


def print_results(results: DemoResults, out: Path) -> None:
    """Print the results of the demo from scratch, and a command to try next."""
    from dualfuse.progress import PlainConsole
    from dualfuse.report.demo.page import FUSION
    from dualfuse.report.demo.wording import percent, verdicts

    console = PlainConsole()
    _print_rows(results.retrieval.rows())
    for name, value in results.fusion:
        console.print(f"{FUSION[name]:<60}{percent(value):>7}", soft_wrap=True)
    for question, answer in verdicts(results.retrieval):
        console.print(f"{question} {answer}", soft_wrap=True)
    _print_next(out, results.commands[1:])


def _print_rows(rows: Sequence[tuple[str, Recall]]) -> None:
    from dualfuse.progress import PlainConsole
    from dualfuse.report.demo.wording import percent

    console = PlainConsole()
    console.print(f"\n{'test split':<36}{'text to image R@1':>18}{'R@10':>8}{'image to text R@1':>20}{'R@10':>8}")
    for name, recall in rows:
        there, back = ([percent(each[k]) for k in (0, 2)] for each in (recall.text_to_image, recall.image_to_text))
        console.print(f"{name:<36}{there[0]:>18}{there[1]:>8}{back[0]:>20}{back[1]:>8}", soft_wrap=True)


def _print_next(out: Path, commands: Sequence[str]) -> None:
    from dualfuse.progress import PlainConsole

    lines = [f"{'try:' if not number else '':<8}{command}" for number, command in enumerate(commands)]
    PlainConsole().print("\n".join(["", f"report: {out / 'report.html'}", *lines]), soft_wrap=True)
