"""What tests of segmentation share: a miniature of ADE20K, coloured shapes on grey with their label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NAMES = ("ground", "red box", "green ball", "blue box")
COLOURS = ("#909090", "#c03030", "#30b040", "#3050c0")
EDGE = 2  # pixels at the left border that are of no class


def draw(seed: int, size: tuple[int, int] = (72, 56)) -> tuple[Image.Image, Image.Image]:
    """Return a noisy image of (width, height) and its label map, in which 0 is no class and 1 the ground."""
    rng = np.random.default_rng(seed)
    image, labels = Image.new("RGB", size, COLOURS[0]), Image.new("L", size, 1)
    for number in rng.permutation([1, 2, 3]).tolist():
        side = int(rng.integers(18, 30))
        left, top = (int(rng.integers(0, length - side)) for length in size)
        box = (left, top, left + side, top + side)
        for canvas, ink in ((image, COLOURS[number]), (labels, 1 + number)):
            drawing = ImageDraw.Draw(canvas)
            drawing.ellipse(box, fill=ink) if number == 2 else drawing.rectangle(box, fill=ink)
    labels.paste(0, (0, 0, EDGE, size[1]))
    pixels = np.asarray(image) + rng.normal(0, 6, (size[1], size[0], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), labels


def ade20k(folder: Path, *, training: int, validation: int) -> Path:
    """Write ADEChallengeData2016 in miniature; images differ in size."""
    for part, numbers in (("training", range(training)), ("validation", range(1000, 1000 + validation))):
        for kind in ("images", "annotations"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            image, labels = draw(number, (72 + number % 3 * 8, 56))
            image.save(folder / "images" / part / f"ADE_{number:08d}.jpg", quality=95)
            labels.save(folder / "annotations" / part / f"ADE_{number:08d}.png")
    rows = [f"{n}\t0.1\t9\t1\t0\t{name}, synonym {n}" for n, name in enumerate(NAMES, start=1)]
    (folder / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows]) + "\n")
    return folder
