"""Answers about an image and a text, with whatever head a checkpoint has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.hub import LoadedModel
from dualfuse.inference.heads import head_of
from dualfuse.inference.prediction import Prediction

Picture = Path | str | bytes
"""A path, or the bytes of an image file."""


def predict(
    model: LoadedModel, image: Picture | Sequence[Picture] | None = None, text: str = "", *, top: int = 5
) -> Prediction:
    """Return what a model says of an image and a text.

    A model trained for questions or labels gives the ``top`` answers; two images go to one that compares them
    (NLVR2). One trained on pairs says whether image and text belong together or, of a text with [MASK] or <mask>,
    which tokens stand there; one trained on text alone does that without an image. ``DualfuseError`` says what this
    model cannot be asked, ``OSError`` which file cannot be read.
    """
    head = head_of(model)
    return head.answer([head.read(read_inputs(image, text))], at_least_one(top))[0]


def read_inputs(image: Picture | Sequence[Picture] | None, text: str) -> Sample:
    """Read the images and gives them with their text, if there is one."""
    images = () if image is None else (image,) if isinstance(image, Picture) else tuple(image)
    first, *others = [_bytes(pil_image) for pil_image in images] or [b""]
    return Sample("what is asked", first, (text,) if text.strip() else (), other_images=tuple(others))


def at_least_one(top: int) -> int:
    """Return ``top``; ``DualfuseError`` for nothing to show."""
    if top < 1:
        raise DualfuseError(f"top is {top}; give the number of answers to show, 1 or more")
    return top


def _bytes(image: Picture) -> bytes:
    return image if isinstance(image, bytes) else Path(image).expanduser().read_bytes()
