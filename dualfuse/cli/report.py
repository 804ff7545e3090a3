"""``dualfuse report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Force, check_new
from dualfuse.errors import DualfuseError

EXAMPLES = """
dualfuse report runs/demo/starter
dualfuse report runs/first runs/second --out comparison.html
"""


def run(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...", help="folders of runs")],
    out: Annotated[
        Path | None,
        arg(metavar="FILE", help="page that compares several runs; default: comparison.html beside the first"),
    ] = None,
    force: Force = False,
) -> None:
    """Write the HTML page of a run, or one page that compares several.

    One run: curves, metrics, example queries on its validation data, and settings, in RUN/report.html. Several: the
    settings that differ, last and best metrics, steps, time and speed in one table, and curves over each other; runs
    that differ in their seed alone share a column, with mean and standard deviation. A page that an earlier command
    wrote is replaced.
    """
    from dualfuse.report.comparison import PAGE, compare
    from dualfuse.report.demo.page import REPORT
    from dualfuse.report.run_page import report

    if not runs:
        raise DualfuseError("give the folder of a run, such as runs/demo/starter")
    page = runs[0] / REPORT if len(runs) == 1 else out or runs[0].resolve().parent / PAGE
    check_new(page, force=force or is_page(page))
    if len(runs) > 1:
        echo(f"wrote {compare(runs, out)}")
        return
    if out:
        raise DualfuseError("--out is for the comparison of several runs; the page of one is RUN/report.html")
    echo(f"wrote {report(next(iter(runs)))}")


def is_page(path: Path) -> bool:
    """Return whether a file is a page of dualfuse, by its title."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return b"<title>dualfuse" in file.read(1000)
