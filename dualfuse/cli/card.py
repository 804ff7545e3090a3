"""``dualfuse card``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo

EXAMPLES = """
dualfuse card runs/demo/starter/best
dualfuse card runs/demo/starter/best --licence apache-2.0 --scores scores.json \\
  --command "dualfuse evaluate runs/demo/starter/best 'data/test-*.tar' --out scores.json"
"""


def run(
    folder: Annotated[Positional[Path], arg(metavar="FOLDER", help="model folder, run, or checkpoint of a run")],
    scores: Annotated[Path | None, arg(metavar="FILE", help="json file of evaluate --out; the card lists it")] = None,
    command: Annotated[str, arg(help="command that computed the scores; the card quotes it")] = "",
    licence: Annotated[str, arg(help="licence of the weights as an identifier of the hub, such as apache-2.0")] = "",
) -> None:
    """Write the model card of a model folder: architecture, training, scores and use.

    The card is FOLDER/README.md; that of a checkpoint is removed with the checkpoint. A card that was edited by hand is
    not overwritten.
    """
    from dualfuse.card import Scores, write_card
    from dualfuse.run_folder import model_of

    echo(f"wrote {write_card(model_of(folder), Scores.read(scores, command) if scores else None, licence)}")
