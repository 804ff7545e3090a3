"""``dualfuse demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

EXAMPLES = """
dualfuse demo
dualfuse demo --out runs/demo-2 --seed 2
"""


def run(
    out: Annotated[Path, arg(metavar="DIR", help="folder for data, models and report")] = Path("runs/demo"),
    seed: Annotated[int, arg(help="seed of initialization, data order and dropout")] = 1,
) -> None:
    """Train and evaluate a small model on the example images of the repository, and write a report.

    The command can be interrupted at any time; rerunning it resumes.
    """
    from dualfuse.report.demo.run import demo

    demo(out, seed=seed)
