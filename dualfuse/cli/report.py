"""``dualfuse report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo
from dualfuse.errors import DualfuseError

EXAMPLES = """
dualfuse report runs/demo/pairs
dualfuse report runs/first runs/second --out comparison.html
"""


def run(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...", help="folders of runs")],
    out: Annotated[
        Path | None,
        arg(metavar="FILE", help="page that compares several runs; default: comparison.html beside the first"),
    ] = None,
) -> None:
    """Write the HTML page of a run, or one page that compares several.

    One run: curves, metrics and settings, in RUN/report.html. Several: the settings that differ, last and best metrics,
    steps, time and speed in one table, and curves over each other; runs that differ in their seed alone share a
    column, with mean and standard deviation.
    """
    from dualfuse.report.comparison import compare
    from dualfuse.report.run_page import report

    if not runs:
        raise DualfuseError("give the folder of a run, such as runs/demo/pairs")
    if len(runs) > 1:
        echo(f"wrote {compare(runs, out)}")
        return
    if out:
        raise DualfuseError("--out is for the comparison of several runs; the page of one is RUN/report.html")
    echo(f"wrote {report(next(iter(runs)))}")
