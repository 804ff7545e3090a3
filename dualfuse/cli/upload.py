"""``dualfuse upload``."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from tyro.conf import Positional, arg

from dualfuse.cli.console import echo

EXAMPLES = """
dualfuse upload runs/demo/starter/best OWNER/NAME
dualfuse upload runs/demo/starter/best OWNER/NAME --no-private
"""


def run(
    model: Annotated[
        Positional[Path],
        arg(metavar="FOLDER", help="model folder of dualfuse or transformers, run, or checkpoint of a run"),
    ],
    name: Annotated[Positional[str], arg(metavar="OWNER/NAME", help="repository on the Hugging Face hub")],
    private: Annotated[bool, arg(help="whether a new repository is private")] = True,
) -> None:
    """Upload a model folder to the Hugging Face hub.

    The token is that of hf auth login, or the environment variable HF_TOKEN.
    """
    from dualfuse import hub
    from dualfuse.export.export import export
    from dualfuse.run_folder import is_checkpoint, model_of

    folder = model_of(model)
    with TemporaryDirectory() as beside:
        if is_checkpoint(folder):
            folder = export(folder, Path(beside) / "model")
        echo(hub.upload(folder, name, private=private))
