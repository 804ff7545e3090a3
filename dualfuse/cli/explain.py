"""``dualfuse explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Force, Model, check_drawing, check_new

EXAMPLES = """
dualfuse explain runs/demo-scratch/pairs/final --image photo.jpg --text "a red bicycle" --save-image explanation.png
dualfuse explain runs/vqa/final --image photo.jpg --text "what colour is the car?" --save-image explanation.png \\
  --method rollout
"""


def run(
    model: Model,
    image: Annotated[
        tuple[Path, ...], arg(metavar="FILE ...", help="image, or two for a model that compares two images")
    ],
    text: Annotated[str, arg(help="text whose words get one heat map each")],
    save_image: Annotated[Path, arg(metavar="FILE", help="image to write, .png or .jpg")],
    method: Annotated[
        Literal["gradient", "rollout"],
        arg(help="gradient: attention weighted by its gradient of the answer; rollout: attention alone"),
    ] = "gradient",
    force: Force = False,
) -> None:
    """Draw the image patches that each word of a text attends to.

    One heat map per word, each on its own scale from the weakest to the strongest patch.
    """
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.data.image.image_grid import save_drawing
    from dualfuse.inference.explain import explain, heat_map_grid

    check_drawing(save_image)
    check_new(save_image, force=force)
    explanations = explain(load(model, device=dist.device()), image, text, method=method)
    save_drawing(heat_map_grid(explanations, f"{method}: {text}"), save_image)
    echo(f"{explanations[0].answer}\nwrote {save_image}")
