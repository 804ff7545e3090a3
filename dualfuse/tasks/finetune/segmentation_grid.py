"""Draws images beside what is in them and what a model sees in them, a colour for each class."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from dualfuse.data.image.image_grid import INK, PAPER, Tile, image_grid
from dualfuse.data.image.joint_crop import IGNORE_LABEL

CELL, MARGIN, LINE = 256, 8, 24
GOLDEN = 0.618034  # of a turn of the colour wheel: neighbours look unlike


class Segmented(NamedTuple):
    """An image file, and for each of its pixels (H, W) the true class and the one that was predicted."""

    file: bytes
    truth: Tensor
    predicted: Tensor


def segmentation_grid(shown: Sequence[Segmented], names: Sequence[str], heading: str = "") -> Image.Image:
    """Return a row for each image: as it is, its true classes, the predicted ones; then the colours' names.

    What is of no class is black.
    """
    colours = palette(len(names))
    tiles = [tile for each in shown for tile in _row(each, colours)]
    grid = image_grid(tiles, columns=3, cell=CELL, heading=heading)
    seen = {int(number) for each in shown for labels in (each.truth, each.predicted) for number in labels.unique()}
    legend = _legend([(names[number], colours[number]) for number in sorted(seen - {IGNORE_LABEL})], grid.width)
    whole = Image.new("RGB", (grid.width, grid.height + legend.height), PAPER)
    whole.paste(grid, (0, 0))
    whole.paste(legend, (0, grid.height))
    return whole


def palette(classes: int) -> np.ndarray:
    """Return a colour (C + 1, 3) uint8 for each class; the last, black, is for none."""
    turns = ((GOLDEN * number % 1, 0.9 - 0.4 * (number % 2), 1 - 0.3 * (number // 2 % 2)) for number in range(classes))
    colours = [colorsys.hsv_to_rgb(*turn) for turn in turns]
    return (255 * np.array([*colours, (0, 0, 0)])).round().astype(np.uint8)


def _row(each: Segmented, colours: np.ndarray) -> tuple[Tile, Tile, Tile]:
    known = each.truth != IGNORE_LABEL
    right = float((each.truth == each.predicted)[known].float().mean()) if known.any() else 0.0
    truth, predicted = (colours[labels.numpy()] for labels in (each.truth, each.predicted))  # IGNORE_LABEL is the last
    return Tile(each.file, ""), Tile(truth, "truth"), Tile(predicted, f"prediction, {100 * right:.1f} % right")


def _legend(entries: Sequence[tuple[str, np.ndarray]], width: int) -> Image.Image:
    """Draw a small square of each colour with its name, in three columns."""
    rows = -(-len(entries) // 3)
    image = Image.new("RGB", (width, MARGIN + LINE * rows), PAPER)
    draw = ImageDraw.Draw(image)
    for number, (name, colour) in enumerate(entries):
        left, top = MARGIN + number % 3 * (CELL + MARGIN), LINE * (number // 3)
        draw.rectangle((left, top, left + LINE - MARGIN, top + LINE - MARGIN), fill=tuple(colour.tolist()))
        draw.text((left + LINE, top), name[:32], INK)
    return image
