"""Grid of images beside their target and predicted classes, one colour per class."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from dualfuse.data.image.image_grid import INK, PAPER, Tile, below, image_grid
from dualfuse.data.image.joint_crop import IGNORE_LABEL

CELL, MARGIN, LINE = 256, 8, 24
GOLDEN = 0.618034  # turn of the colour wheel between classes, so that neighbours differ


class SegmentedImage(NamedTuple):
    """An image file, and the target and predicted class (H, W) of its pixels."""

    file: bytes
    target: Tensor
    predicted: Tensor


def segmentation_grid(images: Sequence[SegmentedImage], names: Sequence[str], heading: str = "") -> Image.Image:
    """Return a row per image: the image, its target classes, the predicted ones; then a legend of the colours.

    Pixels without a class are black.
    """
    colours = palette(len(names))
    tiles = [tile for each in images for tile in _row(each, colours)]
    grid = image_grid(tiles, columns=3, cell=CELL, heading=heading)
    classes = {int(number) for each in images for labels in (each.target, each.predicted) for number in labels.unique()}
    legend = _legend([(names[number], colours[number]) for number in sorted(classes - {IGNORE_LABEL})], grid.width)
    return below(grid, legend)


def palette(classes: int) -> np.ndarray:
    """Return a colour (C + 1, 3) uint8 for each class, and black for none at the end."""
    turns = ((GOLDEN * number % 1, 0.9 - 0.4 * (number % 2), 1 - 0.3 * (number // 2 % 2)) for number in range(classes))
    colours = [colorsys.hsv_to_rgb(*turn) for turn in turns]
    return (255 * np.array([*colours, (0, 0, 0)])).round().astype(np.uint8)


def _row(each: SegmentedImage, colours: np.ndarray) -> tuple[Tile, Tile, Tile]:
    is_labelled = each.target != IGNORE_LABEL
    correct = float((each.target == each.predicted)[is_labelled].float().mean()) if is_labelled.any() else 0.0
    target, predicted = (
        colours[labels.numpy()] for labels in (each.target, each.predicted)
    )  # IGNORE_LABEL is the last
    return Tile(each.file, ""), Tile(target, "target"), Tile(predicted, f"prediction, {100 * correct:.1f} % correct")


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
