"""Maps of words on drawn scenes, where it is known which shape each word is about.

``python bench/explanation.py runs/scenes/hard/final`` asks, for the words of "a small red circle and a large blue
square": which share of the map lies on patches that the shape touches, and whether its strongest patch is one of them
(pointing game). And how fast the match score falls if the patches of the whole text's map are covered, strongest first
(deletion: the mean change of the score over the first half of the patches; lower is better).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse import load
from dualfuse.data.scenes.cases import draw_cases
from dualfuse.data.scenes.shapes import Shape, coverage, png
from dualfuse.data.scenes.statements import Both, parse
from dualfuse.hub import LoadedModel
from dualfuse.inference.explain import Method, explain
from dualfuse.inference.occlusion import CELLS
from dualfuse.inference.word_changes import STOP_WORDS, pair_scores, scores_of

METHODS: tuple[Method, ...] = ("occlusion", "gradient", "rollout")
STEPS = 8
"""Steps of a deletion curve, of four patches of 64 each."""


def touched(shape: Shape) -> Tensor:
    """Return which of the patches (8, 8) a shape touches."""
    patches = torch.from_numpy(coverage(shape)).unflatten(1, (CELLS, -1)).unflatten(0, (CELLS, -1))
    return patches.amax((1, 3)) > 0


def resized(heat: Tensor) -> Tensor:
    """Return a map as (8, 8)."""
    return F.interpolate(heat[None, None].float(), size=(CELLS, CELLS), mode="area")[0, 0]


def deletion(model: LoadedModel, pixels: Tensor, text: str, heat: Tensor) -> float:
    """Return how far the score changes, on average, while the strongest half of the patches is covered step by step."""
    order, side = heat.flatten().argsort(descending=True), pixels.shape[1] // CELLS
    images = [pixels]
    for step in range(1, STEPS + 1):
        covered = pixels.clone()
        for number in order[: 4 * step].tolist():
            top, left = side * (number // CELLS), side * (number % CELLS)
            covered[:, top : top + side, left : left + side] = pixels.mean((1, 2), keepdim=True)
        images.append(covered)
    with torch.inference_mode():
        scores = scores_of(model, *pair_scores(model, torch.stack(images), [text]))
    return float((scores[1:] - scores[0]).mean())


def measure(model: LoadedModel, number: int, seed: int) -> dict[str, float]:
    """Return share on the shape, pointing accuracy and fall of the score by deletion, for each method."""
    values, rng = defaultdict[str, list[float]](list), np.random.default_rng(seed)
    for case in islice(draw_cases("attribute/replace", number, seed), number):
        [scene], text = case.scenes, case.captions[0]
        statement, file = parse(text), png(scene)
        assert isinstance(statement, Both)  # of this category
        kinds = [kind for kind in (statement.first, statement.second) for _ in kind.split()]
        targets = [touched(next(shape for shape in scene if shape.kind == kind)) for kind in kinds]
        pixels = model.processor.image(file, rng)
        values["random/deletion"].append(deletion(model, pixels, text, torch.from_numpy(rng.random((CELLS, CELLS)))))
        for method in METHODS:
            [each] = explain(model, file, text, method=method)
            content = [at for at, word in enumerate(each.words) if at and word not in STOP_WORDS]
            for target, at in zip(targets, content, strict=True):
                heat = resized(each.heat[at])
                values[f"{method}/share"].append(float((heat * target).sum() / heat.sum().clamp(min=1e-12)))
                values[f"{method}/pointing"].append(float(target.flatten()[heat.argmax()]))
            values[f"{method}/deletion"].append(deletion(model, pixels, text, resized(each.heat[0])))
    return {name: float(np.mean(some)) for name, some in values.items()}


def main() -> None:
    """Print each number, as mean and standard deviation over models, or over sets of scenes of one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the drawings")
    chosen = parser.parse_args()
    runs = [measure(load(name), chosen.scenes, seed) for name in chosen.models for seed in chosen.seeds]
    for name in runs[0]:
        numbers = [run[name] for run in runs]
        print(f"{name:24} {np.mean(numbers):.3f} ± {np.std(numbers, ddof=1) if len(numbers) > 1 else 0:.3f}")


if __name__ == "__main__":
    main()
