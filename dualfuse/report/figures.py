"""Charts as inline SVG, drawn by matplotlib with the colours of the page's style sheet, for light and dark mode."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from dualfuse.errors import MissingExtraError
from dualfuse.report.curves import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_SERIES = 4
"""Colours of lines in the style sheet."""
INK, FAINT = "#010101", "#020202"  # placeholders that become variables of the style sheet
COLOURS = {INK: "--ink-2", FAINT: "--line"} | {
    f"#0300{number:02d}": f"--series-{number}" for number in range(1, 1 + NUM_SERIES)
}
SIZE = (4.4, 2.7)  # inches of 72 units: about the width of a phone, where its text must be readable
POINTS = 40
"""Curves with more points are drawn with a running mean."""


@dataclass(frozen=True)
class Line:
    """A curve and its style."""

    curve: Curve
    series: int
    """Number of the colour, 1 to 4."""
    is_dashed: bool = False
    is_exact: bool = False
    """Whether it is drawn without a running mean."""


@dataclass(frozen=True)
class Chart:
    """Lines over steps or minutes, with a vertical line at ``boundary``, the end of a stage (0: none)."""

    lines: tuple[Line, ...]
    over: str
    """The unit of the horizontal axis: "steps" or "minutes"."""
    boundary: float = 0.0
    is_share: bool = False
    """Whether the values are between 0 and 1, and labelled as percentages."""


def draw(chart: Chart) -> str:
    """Return the chart as an <svg> element; raises ``MissingExtraError`` without matplotlib."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator, PercentFormatter
    except ImportError as error:
        raise MissingExtraError("drawing charts with matplotlib", "plots") from error
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dualfuse", "font.size": 9.5}):
        figure = Figure(SIZE, layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        if chart.boundary:
            axes.axvline(chart.boundary, color=INK, linewidth=0.9, dashes=(1.5, 2.5))
        for line in chart.lines:
            _plot(axes, line, chart.over)
        axes.set_xlabel(chart.over, color=INK)
        axes.tick_params(colors=INK, length=0, pad=5)
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.spines["bottom"].set(visible=True, color=FAINT)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=chart.over == "steps"))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlim(left=0)
        if chart.is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
            axes.set_ylim(bottom=0)
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return _inline(file.getvalue())


def _plot(axes: Axes, line: Line, over: str) -> None:
    colour = f"#0300{line.series:02d}"
    steps, seconds, y = np.array(line.curve.points, dtype=float).reshape(-1, 3).T
    x = steps if over == "steps" else seconds / 60
    style = {"color": colour, "linestyle": (0, (4, 2)) if line.is_dashed else "solid", "solid_capstyle": "round"}
    if line.is_exact or len(y) <= POINTS:
        axes.plot(x, y, linewidth=1.8, marker="o" if len(y) < 15 else "", markersize=3.5, **style)
        return
    axes.plot(x, y, linewidth=0.8, alpha=0.25, color=colour)
    axes.plot(x, running_mean(y, len(y) // 20), linewidth=1.8, **style)


def running_mean(y: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the ``window`` values around each value of ``y`` (N,), of fewer at the ends."""
    weights = np.ones(window | 1)
    reach = len(weights) // 2
    total = np.convolve(y, weights)[reach : reach + len(y)]
    return total / np.convolve(np.ones_like(y), weights)[reach : reach + len(y)]


def _inline(svg: str) -> str:
    """Return an SVG file as an element of a page: without prologue, size, fonts and style, and with unique ids."""
    suffix = blake2b(svg.encode(), digest_size=4).hexdigest()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg class="chart" role="img" \1>', svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*;?", "", re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg))
    for replacement, name in COLOURS.items():
        svg = svg.replace(replacement, f"var({name})")
    used = set(re.findall(r"(?:url\(|xlink:href=\")#([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: f' id="{match[1]}-{suffix}"' if match[1] in used else "", svg)
    svg = re.sub(r"((?:url\(|xlink:href=\")#[^)\"]+)", rf"\1-{suffix}", svg).replace("xlink:href=", "href=")
    return re.sub(r"\s+", " ", svg).replace("> <", "><").strip()
