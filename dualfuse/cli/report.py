"""``dualfuse report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo

EXAMPLES = """
dualfuse report runs/demo/pairs
"""


def run(
    run: Annotated[Positional[Path], arg(metavar="RUN", help="folder of a run, such as runs/demo/pairs")],
) -> None:
    """Write the HTML page of a run: curves, metrics and settings."""
    from dualfuse.report.run_page import report

    echo(f"wrote {report(run)}")
