"""Measures how often a model that sees no image finds the true caption of the drawn test cases.

``python bench/blind_captions.py`` fits a logistic regression on words, word pairs and places of words of 2,000 cases of
each category, for three seeds; it prints the accuracy on the 500 cases that ``evaluate --benchmark scenes`` draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from statistics import mean, stdev

import torch
from torch import Tensor
from torch.nn import functional as F

from dualfuse.data.scenes.cases import CATEGORIES, SceneCase, draw_cases

PENALTY, STEPS = 1e-3, 200


def features(text: str) -> list[str]:
    """Return the words, the pairs of words, and the words with their position."""
    words = text.split()
    return [
        *words,
        *map(" ".join, pairwise(words)),
        *(f"{n} {word}" for n, word in enumerate(words)),
    ]


def counts(texts: Sequence[str], numbers: dict[str, int]) -> Tensor:
    """Return the counts (N, F) of features; those without a number are ignored."""
    table = torch.zeros(len(texts), len(numbers))
    for row, text in enumerate(texts):
        for feature in features(text):
            if feature in numbers:
                table[row, numbers[feature]] += 1
    return table


def fit(cases: Sequence[SceneCase], numbers: dict[str, int]) -> Tensor:
    """Return the weights (F,) of a regression that prefers the true caption of each case."""
    true = counts([case.captions[0] for case in cases], numbers)
    difference = torch.stack([true - counts([case.captions[k] for case in cases], numbers) for k in _foils(cases)])
    weights = torch.zeros(len(numbers), requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.softplus(-difference @ weights).mean() + PENALTY * weights.square().sum()
        loss.backward()
        optimizer.step()
    return weights.detach()


def _foils(cases: Sequence[SceneCase]) -> range:
    return range(1, len(cases[0].captions))


def accuracy(cases: Sequence[SceneCase], weights: Tensor, numbers: dict[str, int]) -> float:
    """Return the share of cases whose true caption scores above all others."""
    true = counts([case.captions[0] for case in cases], numbers) @ weights
    false = torch.stack([counts([case.captions[k] for case in cases], numbers) @ weights for k in _foils(cases)])
    return float((true > false.max(0).values).float().mean())


def main() -> None:
    """Print one line per category with a single image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=2000, help="cases to fit on")
    parser.add_argument("--cases", type=int, default=500, help="cases to test on")
    chosen = parser.parse_args()
    for category in CATEGORIES:
        tested = list(draw_cases(category, chosen.cases, seed=0))
        if len(tested[0].scenes) == 2:
            continue  # each caption is true of one of the images
        shares = []
        for seed in (1, 2, 3):
            cases = list(draw_cases(category, chosen.train, seed))
            found = sorted({feature for case in cases for text in case.captions for feature in features(text)})
            numbers = {feature: number for number, feature in enumerate(found)}
            shares.append(100 * accuracy(tested, fit(cases, numbers), numbers))
        chance = 100 / len(tested[0].captions)
        print(f"{category:20}  chance {chance:4.1f}  blind {mean(shares):4.1f} ± {stdev(shares):.1f}", flush=True)


if __name__ == "__main__":
    main()
