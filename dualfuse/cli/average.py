"""``dualfuse average``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Force

EXAMPLES = """
dualfuse average runs/demo-scratch/pairs --last 2 --out models/pairs-average
dualfuse average runs/first/final runs/second/final runs/third/final --out models/soup
"""


def run(
    sources: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="CHECKPOINT ...", help="checkpoints and model folders of one architecture, or one run with --last"),
    ],
    out: Annotated[Path, arg(metavar="DIR", help="model folder to write")],
    last: Annotated[int, arg(metavar="N", help="average the newest N checkpoints of the run; 0: those given")] = 0,
    force: Force = False,
) -> None:
    """Average the weights of several checkpoints or model folders.

    Means are computed in double precision; integer tensors, such as counters, are those of the last model.
    """
    from dualfuse.export.average import average

    echo(f"model: {average(sources, out, last=last, force=force)}")
