"""Draws what VLMo's first two stages bring: recall while pairs are trained, and at the end. Called by stages.py."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Points = tuple[tuple[float, float], ...]
"""(processor seconds, R@10 in percent), one run's."""
COLOURS = ("#9a9a9a", "#333333", "#1f5fa8", "#c2571a", "#2e7d4f", "#6fa8dc")


def draw(curves: Mapping[str, Sequence[Points]], reached: Mapping[str, Sequence[float]], image: Path) -> None:
    """Draw, by arm, the curve of every seed and R@10 of every seed on the test split."""
    figure = Figure((9.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1), sharey=True)
    for (name, runs), colour in zip(curves.items(), COLOURS, strict=True):
        _curves(left, name, runs, colour)
    _ends(right, reached)
    left.set(xlabel="processor seconds, stages before pairs included", ylabel="R@10, mean of both ways, %")
    left.set(xlim=(0, None), ylim=(0, None))
    left.set_title("While pairs are trained (validation)", fontsize=10)
    right.set_title("At the end (test)", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    figure.savefig(image, dpi=130, metadata={"Software": ""})


def _curves(axes: Axes, name: str, runs: Sequence[Points], colour: str) -> None:
    """Draw each seed thin and their mean thick; seeds have the same steps."""
    for run in runs:
        axes.plot(*zip(*run, strict=True), color=colour, linewidth=0.7, alpha=0.4)
    means = [tuple(map(statistics.mean, zip(*points, strict=True))) for points in zip(*runs, strict=True)]
    axes.plot(*zip(*means, strict=True), color=colour, linewidth=2, marker="o", ms=3, label=name)


def _ends(axes: Axes, reached: Mapping[str, Sequence[float]]) -> None:
    for place, (values, colour) in enumerate(zip(reached.values(), COLOURS, strict=True)):
        axes.plot([place - 0.25, place + 0.25], 2 * [statistics.mean(values)], color=colour, linewidth=2)
        axes.plot(len(values) * [place], values, "o", color=colour, ms=5, alpha=0.7)
    axes.set_xticks(range(len(reached)), [name.replace(" ", "\n") for name in reached], fontsize=7)
    axes.set_xlim(-0.6, len(reached) - 0.4)
