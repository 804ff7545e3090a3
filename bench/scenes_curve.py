"""Draws what re-ranking adds while a model learns scenes, from the logs of a run of examples/scenes.py:scenes.

``python bench/scenes_curve.py runs/scenes docs/images/scenes-curve.png`` draws recall on the validation images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dualfuse.report.curves import History, history, joined, merged

STAGES = {"contrast": "contrast\nalone", "random": "random\nnegatives", "hard": "hard\nnegatives"}
WAYS = {"text_to_image": "Text to image", "image_to_text": "Image to text"}
COLOURS = {"R@1": "#1f5fa8", "R@5": "#c2571a"}


def plot(axes: Axes, way: str, stages: tuple[History, ...]) -> None:
    """Draw recall of one way, as the dual encoder finds it and re-ranked, and where stages began."""
    for recall, colour in COLOURS.items():
        for place, style, label in (("", "--", "dual encoder"), ("reranked/", "-", "re-ranked")):
            curves = joined(stages, f"validation/{way}/{place}{recall}")
            if curves:
                line = merged(curves)
                steps, percent = zip(*((step, 100 * value) for step, _, value in line.points), strict=True)
                axes.plot(steps, percent, style, color=colour, marker="o", ms=3, label=f"{recall}, {label}")
    start = 0
    for stage in stages:
        axes.axvline(start, color="#999999", linewidth=0.8, linestyle=":")
        axes.text(start + 30, 101, STAGES[stage.name], fontsize=8, va="bottom", color="#555555")
        start += stage.steps
    axes.set_title(WAYS[way], pad=30)
    axes.set(xlabel="steps", xlim=(0, start), ylim=(0, 100))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)


def main() -> None:
    """Read the logs and writes the image."""
    parser = argparse.ArgumentParser(description="Draws validation recall, dual and re-ranked, against steps.")
    parser.add_argument("run", type=Path)
    parser.add_argument("image", type=Path)
    chosen = parser.parse_args()
    stages = tuple(history(chosen.run / name, name) for name in STAGES)
    figure = Figure((9, 4.2), layout="constrained")
    for axes, way in zip(figure.subplots(1, 2, sharey=True), WAYS, strict=True):
        plot(axes, way, stages)
    figure.axes[0].set_ylabel("recall, %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(chosen.image, dpi=130, metadata={"Software": ""})


if __name__ == "__main__":
    main()
