"""Answers about a picture and a text, with whatever head a checkpoint has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dualfuse.data.sample import Sample
from dualfuse.hub import Loaded
from dualfuse.use.heads import head_of
from dualfuse.use.prediction import Prediction

Picture = Path | str | bytes
"""A path, or the bytes of a picture file."""


def predict(
    model: Loaded, image: Picture | Sequence[Picture] | None = None, text: str = "", *, top: int = 5
) -> Prediction:
    """Gives what a model says of a picture and a text.

    A model trained for questions or labels gives the ``top`` answers; two pictures go to one that compares them
    (NLVR2). One trained on pairs says whether picture and text belong together or, of a text with [MASK] or <mask>,
    which word pieces stand there; one trained on text alone does that without a picture. ``ValueError`` says what this
    model cannot be asked, ``OSError`` which file cannot be read.
    """
    head = head_of(model)
    return head.answer([head.read(asked(image, text))], at_least_one(top))[0]


def asked(image: Picture | Sequence[Picture] | None, text: str) -> Sample:
    """Reads the pictures and gives them with their text, if there is one."""
    pictures = () if image is None else (image,) if isinstance(image, Picture) else tuple(image)
    first, *others = [_bytes(picture) for picture in pictures] or [b""]
    return Sample("what is asked", first, (text,) if text.strip() else (), others=tuple(others))


def at_least_one(top: int) -> int:
    """Gives ``top``; ``ValueError`` for nothing to show."""
    if top < 1:
        raise ValueError(f"top is {top}; give the number of answers to show, 1 or more")
    return top


def _bytes(picture: Picture) -> bytes:
    return picture if isinstance(picture, bytes) else Path(picture).expanduser().read_bytes()
