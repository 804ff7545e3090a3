"""Why do VLMo's first stages help or harm? What they make of images and captions, and which of their parts do it.

``OMP_NUM_THREADS=1 python bench/stages_parts.py --pairs PAIRS --text TEXT.txt`` after bench/stages.py with the same
arguments. Two Markdown tables: how unlike the first tokens of validation images and captions are when pairs begin;
and recall on the validation images after contrast alone, if it begins with some tensors of a stage, others random.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import safetensors.torch
import torch
from stages import ARMS, Arm, Place, arguments, spend, stages, validated
from torch import Tensor

from dualfuse import hub
from dualfuse.layers.heads import normalize
from dualfuse.tasks.base import Batch, Task
from dualfuse.training.dataloader import training_dataloader

STEM, VISION = ("model.patches.*",), ("model.blocks.*.experts.image.*",)
WORDS, LANGUAGE = ("model.words.*",), ("model.blocks.*.experts.text.*",)
SHARED = ("model.blocks.*.attention.*", "model.blocks.?.norm.*", "model.norm.*", "model.types.*")


@dataclass(frozen=True)
class Part:
    """The first stage of an arm, and the tensors that pairs begin with."""

    arm: Arm
    kept: tuple[str, ...]


STARTS = {
    "nothing": ARMS["pairs alone"],
    "images": ARMS["images, pairs"],
    "text": ARMS["text, pairs"],
    "images, text": ARMS["images, text, pairs"],
}
"""What comes before pairs, whole."""
IMAGES = 383
"""Of the validation split, at most."""
PARTS = {
    "images, half as long: all": Part(ARMS["images, text, pairs"], ("*",)),
    "text: words": Part(ARMS["text, pairs"], WORDS),
    "text: words and language experts": Part(ARMS["text, pairs"], WORDS + LANGUAGE),
    "text: attention and final norm": Part(ARMS["text, pairs"], SHARED),
    "images: stem": Part(ARMS["images, pairs"], STEM),
    "images: all but the stem": Part(ARMS["images, pairs"], SHARED + VISION),
}
"""The stem is what makes patches: here convolutions."""


def reached(name: str, part: Part, seed: int, place: Place) -> float:
    """Return R@10 on the validation images at the end of contrast, in percent."""
    found = stages(part.arm, seed, place)
    before, (_, contrast) = found[0][0], found[-2]
    folder = place.out / f"parts-{seed}" / "".join(letter for letter in name if letter.isalpha())
    start = folder.with_name(f"{folder.name}-start")
    cut(before / "final", start, part.kept)
    spend(folder, replace(contrast, start_from=str(start)))
    return validated(folder)[-1][1]


def cut(source: Path, target: Path, kept: tuple[str, ...]) -> None:
    """Copy a model folder with some of its tensors."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    tensors = hub.read_tensors(source)
    some = {name: value for name, value in tensors.items() if any(fnmatchcase(name, pattern) for pattern in kept)}
    safetensors.torch.save_file(some, target / hub.WEIGHTS)


def spread(path: Path | None, batch: Batch, make: Callable[[], Task]) -> tuple[float, ...]:
    """Return mean cosine and effective dimensions of images' first tokens, then of captions', before contrast."""
    model = (hub.load(path).task if path else make()).model.eval()
    with torch.inference_mode():
        image = model.encode(model.embed_image(batch["image"]))
        text = model.encode(model.embed_text(batch["ids"], batch["mask"]))
    return *alike(image), *alike(text)


def alike(states: Tensor) -> tuple[float, float]:
    """Return the mean cosine of two different rows of (B, D), and the participation ratio of their variances."""
    rows, number = normalize(states), len(states)
    cosine = ((rows @ rows.T).sum() - number) / (number * (number - 1))
    variances = torch.linalg.svdvals(states - states.mean(0)) ** 2
    return float(cosine), float(variances.sum() ** 2 / (variances**2).sum())


def spreads(seeds: Sequence[int], place: Place) -> str:
    """Return a Markdown table of what pairs begin with, the means over seeds."""
    lines = [
        "| what pairs begin with | images: cosine, dimensions | captions: cosine, dimensions |",
        "|---|---:|---:|",
    ]
    for name, arm in STARTS.items():
        found = []
        for seed in seeds:
            *before, (_, recipe), _ = stages(arm, seed, place)
            torch.manual_seed(seed)
            validation = replace(recipe.data, train=(place.split("val"),), batch_size=IMAGES)
            batch = next(training_dataloader(replace(recipe, data=validation), start=0)).batch
            path = before[-1][0] / "final" if before else None
            found.append(spread(path, batch, lambda recipe=recipe: recipe.build()))
        means = [statistics.mean(column) for column in zip(*found, strict=True)]
        lines.append("| {} | {:.2f}, {:.1f} | {:.2f}, {:.1f} |".format(name, *means))
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and prints the table."""
    parser = arguments("Hands over parts of VLMo's first stages.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    place = Place(chosen.pairs, chosen.text, chosen.out)
    print(spreads(chosen.seeds, place) + "\n")
    print("| what pairs begin with | R@10 of each seed |\n|---|---:|")
    for name, part in PARTS.items():
        found = [reached(name, part, seed, place) for seed in chosen.seeds]
        print(f"| {name} | {' / '.join(f'{value:.1f}' for value in found)} |", flush=True)


if __name__ == "__main__":
    main()
