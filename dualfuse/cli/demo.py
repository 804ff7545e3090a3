"""``dualfuse demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from dualfuse.cli.parser import Force, check_new

if TYPE_CHECKING:
    from dualfuse.report.demo.results import DemoResults

EXAMPLES = """
dualfuse demo
dualfuse demo --out runs/demo-2 --seed 2
"""
STARTED = "data/prepared.json"
"""File that the demo writes before all others."""
WRITTEN = ("ATTRIBUTION.txt", "seconds.json", "results.json", "report.html")
"""Files in the folder of the demo, beside the folders of data, runs and images."""


def run(
    out: Annotated[Path, arg(metavar="DIR", help="folder for data, models and report")] = Path("runs/demo"),
    seed: Annotated[int, arg(help="seed of initialization, data order and dropout")] = 1,
    force: Force = False,
) -> None:
    """Train and evaluate a small model on the example images of the repository, and write a report.

    The command can be interrupted at any time; rerunning it resumes.
    """
    from dualfuse.report.demo.run import demo

    if not (out / STARTED).is_file():  # later files are of an earlier start
        check_new(*(out / name for name in WRITTEN), force=force)
    print_results(demo(out, seed=seed), out)


def print_results(results: DemoResults, out: Path) -> None:
    """Print the results of the demo, and a command to try next."""
    from dualfuse.progress import PlainConsole
    from dualfuse.report.demo.page import FUSION
    from dualfuse.report.demo.run import search_command
    from dualfuse.report.demo.wording import percent, verdicts

    console = PlainConsole()
    console.print(f"\n{'test split, R@1':<32}{'text to image':>15}{'image to text':>15}")
    for name, recall in results.retrieval.rows():
        console.print(f"{name:<32}{percent(recall.text_to_image[0]):>15}{percent(recall.image_to_text[0]):>15}")
    for name, value in results.fusion:
        console.print(f"{FUSION[name]:<60}{percent(value):>7}", soft_wrap=True)
    for question, answer in verdicts(results.retrieval):
        console.print(f"{question} {answer}", soft_wrap=True)
    console.print(f"\nreport: {out / 'report.html'}\ntry:    {search_command(out)}", soft_wrap=True)
