"""``dualfuse explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from dualfuse.cli.console import echo
from dualfuse.cli.parser import Force, Model, check_drawing, check_new
from dualfuse.errors import DualfuseError
from dualfuse.printable import json_line

EXAMPLES = """
dualfuse explain runs/demo-scratch/pairs/final --image photo.jpg --text "a red bicycle" --save-image explanation.png
dualfuse explain runs/demo/starter/best --image photo.jpg --text "a red bicycle" --json
dualfuse explain runs/vqa/final --image photo.jpg --text "what colour is the car?" --save-image explanation.png \\
  --method rollout
"""


def run(
    model: Model,
    image: Annotated[
        tuple[Path, ...], arg(metavar="FILE ...", help="image, or two for a model that compares two images")
    ],
    text: Annotated[str, arg(help="text whose words get one heat map each")],
    save_image: Annotated[Path | None, arg(metavar="FILE", help="image to write, .png or .jpg")] = None,
    method: Annotated[
        Literal["gradient", "rollout", "occlusion"] | None,
        arg(
            help="gradient: attention weighted by its gradient of the answer; rollout: attention alone; occlusion: "
            "what a word adds to the match, less if a part of the image is covered; default: occlusion "
            "for models of pairs, gradient for others"
        ),
    ] = None,
    json: Annotated[bool, arg(help="print the probabilities as one JSON object")] = False,
    force: Force = False,
) -> None:
    """Explain an answer: what each word changes, and the image patches that each word draws on.

    For models of pairs the probability of a match is printed, with its change if a word is removed or swapped. The
    image has one heat map per word, each on its own scale from the weakest to the strongest patch.
    """
    from dualfuse import distributed as dist
    from dualfuse.convert.load import load
    from dualfuse.data.image.image_grid import save_drawing
    from dualfuse.inference.explain import explain, heat_map_grid
    from dualfuse.inference.word_changes import explain_file, has_probability

    if save_image:
        check_drawing(save_image)
    check_new(save_image, force=force)
    loaded = load(model, device=dist.device())
    scored = has_probability(loaded)
    if not save_image and not scored:
        raise DualfuseError("this model has no match probability to print; give --save-image FILE for its heat maps")
    changes = explain_file(loaded, image, text) if scored else None
    if json:
        echo(json_line(changes.record() if changes else {}))
    elif changes:
        echo("\n".join(changes.lines()))
    if save_image:
        chosen = method or ("occlusion" if scored and len(image) == 1 else "gradient")
        explanations = explain(loaded, image, text, method=chosen)
        save_drawing(heat_map_grid(explanations, f"{chosen}: {text}", changes.lines() if changes else ()), save_image)
        echo(f"{explanations[0].answer}\nwrote {save_image}", to_stderr=json)
