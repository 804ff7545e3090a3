"""``dualfuse export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Force

EXAMPLES = """
dualfuse export runs/demo-scratch/pairs
dualfuse export runs/demo-scratch/pairs --step 500 --out models/pairs-500
dualfuse export runs/demo-scratch/pairs/checkpoints/step-00000500
"""


def run(
    source: Annotated[
        Positional[Path],
        arg(metavar="RUN", help="folder of a run, or one of its checkpoints such as RUN/checkpoints/step-00000500"),
    ],
    out: Annotated[
        Path | None, arg(metavar="DIR", help="model folder to write; default: RUN/exported/step-00000500")
    ] = None,
    step: Annotated[int | None, arg(metavar="N", help="step of the checkpoint; default: the newest")] = None,
    force: Force = False,
) -> None:
    """Make a model folder of a checkpoint of a run.

    The run may be active, stopped or finished, and its checkpoints written by one process or by many.
    """
    from dualfuse.export.export import export

    echo(f"model: {export(source, out, step=step, force=force)}")
