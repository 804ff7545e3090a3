"""Coloured shapes in the four cells of an image, their drawing, and the pixels that each one covers."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

CELL, ZOOM = 32, 4
SIDE = 2 * CELL
"""Width and height of an image in pixels."""
RADII = {"small": 6.5, "large": 12.0}
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "black")
FORMS = {"circle": (40, 0), "triangle": (3, 0), "square": (4, 0), "diamond": (4, 45)}
"""Number of corners, and rotation in degrees, of each form."""
KINDS = tuple(" ".join(words) for words in product(RADII, COLORS, FORMS))
"""The 64 kinds of shapes, such as "small red circle"."""


@dataclass(frozen=True)
class Shape:
    """One shape: its kind, such as "small red circle", its cell, 0 to 3 in reading order, and its center in pixels."""

    kind: str
    cell: int
    x: float
    y: float

    @property
    def size(self) -> str:
        """Return "small" or "large"."""
        return self.kind.split()[0]

    @property
    def color(self) -> str:
        """Return one of ``COLORS``."""
        return self.kind.split()[1]

    @property
    def form(self) -> str:
        """Return one of ``FORMS``."""
        return self.kind.split()[2]

    def fill(self, image: Image.Image, color: str | int) -> None:
        """Draw the shape on an image of ``ZOOM`` times the size."""
        circle = (ZOOM * self.x, ZOOM * self.y, ZOOM * RADII[self.size])
        ImageDraw.Draw(image).regular_polygon(circle, *FORMS[self.form], fill=color)


Scene = tuple[Shape, ...]
"""The shapes of one image, at most one per cell."""


def place(kinds: Mapping[int, str], rng: np.random.Generator) -> Scene:
    """Return a shape of each kind anywhere within its cell; ``kinds`` are listed by cell."""
    shapes: list[Shape] = []
    for cell, kind in kinds.items():
        room = CELL / 2 - RADII[kind.split()[0]] - 1
        x, y = ((number + 0.5) * CELL + rng.uniform(-room, room) for number in (cell % 2, cell // 2))
        shapes.append(Shape(kind, cell, x, y))
    return tuple(shapes)


def scatter(kinds: Sequence[str], rng: np.random.Generator) -> Scene:
    """Return a scene with shapes of these kinds, at most four, in random cells."""
    cells = rng.permutation(4)[: len(kinds)].tolist()
    return place(dict(zip(cells, kinds, strict=True)), rng)


def draw(scene: Scene) -> Image.Image:
    """Return the image, ``SIDE`` x ``SIDE`` pixels."""
    image = Image.new("RGB", (SIDE * ZOOM, SIDE * ZOOM), "white")
    for shape in scene:
        shape.fill(image, shape.color)
    return image.reduce(ZOOM)


def png(scene: Scene) -> bytes:
    """Return the image as a PNG file; equal scenes give equal bytes."""
    file = io.BytesIO()
    draw(scene).save(file, "PNG")
    return file.getvalue()


def coverage(shape: Shape) -> np.ndarray:
    """Return the share, 0 to 1, of each pixel that a shape covers, float64 (``SIDE``, ``SIDE``)."""
    image = Image.new("L", (SIDE * ZOOM, SIDE * ZOOM))
    shape.fill(image, 255)
    return np.asarray(image.reduce(ZOOM)) / 255


def split_of(first: str, second: str) -> str:
    """Return the split of a pair of kinds, in any order: a tenth of all pairs each is test and val."""
    number = zlib.crc32(" and ".join(sorted((first, second))).encode()) % 10
    return ("test", "val")[number] if number < 2 else "train"
