"""Charts as inline SVG: matplotlib draws, the page's style sheet gives the colours, which follow light and dark."""

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

INK, FAINT = "#010101", "#020202"  # stand-ins that the style sheet replaces
COLOURS = {INK: "--ink-2", FAINT: "--line"} | {f"#0300{number:02d}": f"--series-{number}" for number in range(1, 5)}
SIZE = (4.4, 2.7)  # inches of 72 units: about the width of a phone, so that its words stay readable there
POINTS = 40
"""Curves with more points than this also get a running mean."""


@dataclass(frozen=True)
class Line:
    """A curve to draw, whether over its steps or its seconds is the chart's business."""

    curve: Curve
    series: int
    """Colour, 1 to 4."""
    is_dashed: bool = False
    is_exact: bool = False
    """Drawn as it is, without a running mean."""


@dataclass(frozen=True)
class Chart:
    """Lines over steps, or over time, with a vertical line ``boundary`` where a stage ended (0: none)."""

    lines: tuple[Line, ...]
    over: str
    """What the horizontal axis counts: "steps" or "minutes"."""
    boundary: float = 0.0
    is_share: bool = False
    """The values are shares of one, written as percentages."""


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
    curve, colour = line.curve, f"#0300{line.series:02d}"
    x = np.array(curve.steps) if over == "steps" else np.array(curve.seconds) / 60
    y = np.array(curve.values)
    style = {"color": colour, "linestyle": (0, (4, 2)) if line.is_dashed else "solid", "solid_capstyle": "round"}
    if line.is_exact or len(y) <= POINTS:
        axes.plot(x, y, linewidth=1.8, marker="o" if len(y) < 15 else "", markersize=3.5, **style)
        return
    axes.plot(x, y, linewidth=0.8, alpha=0.25, color=colour)
    axes.plot(x, running_mean(y, len(y) // 20), linewidth=1.8, **style)


def running_mean(y: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the ``window`` values around each of (N,), of fewer at the ends."""
    weights = np.ones(window | 1)
    reach = len(weights) // 2
    total = np.convolve(y, weights)[reach : reach + len(y)]
    return total / np.convolve(np.ones_like(y), weights)[reach : reach + len(y)]


def _inline(svg: str) -> str:
    """Make a file an element: no prologue, no fixed size, no fonts, no rules and names that reach beyond it."""
    mark = blake2b(svg.encode(), digest_size=4).hexdigest()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg class="chart" role="img" \1>', svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*;?", "", re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg))
    for replacement, name in COLOURS.items():
        svg = svg.replace(replacement, f"var({name})")
    used = set(re.findall(r"(?:url\(|xlink:href=\")#([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{found[1]}-{mark}"' if found[1] in used else "", svg)
    svg = re.sub(r"((?:url\(|xlink:href=\")#[^)\"]+)", rf"\1-{mark}", svg).replace("xlink:href=", "href=")
    return re.sub(r"\s+", " ", svg).replace("> <", "><").strip()
