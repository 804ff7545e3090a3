"""A reliability diagram: how often pairs of each probability are right."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from dualfuse.data.image.image_grid import Tile, image_grid, save_drawing
from dualfuse.errors import DualfuseError
from dualfuse.metrics.calibration import BINS, ReliabilityBin

SIDE, MARGIN = 320, 24
BAR, TRUE, GREY = (70, 130, 200), (220, 80, 0), (150, 150, 150)


def save_reliability(curves: Mapping[str, Sequence[ReliabilityBin]], path: Path) -> None:
    """Draw one diagram per kind of score; raises ``DualfuseError`` for a model that is not calibrated."""
    if not curves:
        raise DualfuseError(
            "the model is not calibrated; calibrate it on held-out pairs with "
            "dualfuse evaluate MODEL SHARDS --calibrate"
        )
    tiles = [Tile(reliability_diagram(bins), f"ECE {_error(bins):.3f}", title=name) for name, bins in curves.items()]
    heading = "Share of right pairs (bars) by probability (line: perfect)"
    save_drawing(image_grid(tiles, columns=len(tiles), cell=SIDE, heading=heading), path)


def reliability_diagram(bins: Sequence[ReliabilityBin]) -> bytes:
    """Return a PNG: a bar per bin as high as the share that is right, a dot at its mean probability, the diagonal.

    The strip below the axis is as dark as the bin's share of all pairs.
    """
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw, size = ImageDraw.Draw(image), SIDE - 2 * MARGIN
    largest = max(each.share for each in bins)
    for each in bins:
        number = min(int(each.probability * BINS), BINS - 1)
        left, right = (MARGIN + size * (number + end) / BINS for end in (0, 1))
        draw.rectangle((left + 1, SIDE - MARGIN - size * each.right, right - 1, SIDE - MARGIN), fill=BAR)
        shade = round(255 - 215 * each.share / largest)
        draw.rectangle((left + 1, SIDE - MARGIN + 4, right - 1, SIDE - MARGIN + 14), fill=(shade, shade, shade))
        x, y = MARGIN + size * each.probability, SIDE - MARGIN - size * each.right
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=TRUE)
    draw.line((MARGIN, SIDE - MARGIN, SIDE - MARGIN, MARGIN), fill=GREY, width=2)
    draw.rectangle((MARGIN, MARGIN, SIDE - MARGIN, SIDE - MARGIN), outline=GREY)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _error(bins: Sequence[ReliabilityBin]) -> float:
    return sum(each.share * abs(each.probability - each.right) for each in bins)
