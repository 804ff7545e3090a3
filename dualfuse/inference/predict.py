"""Predictions of a model for an image, a text, or both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.files import MAX_IMAGE, read_bounded
from dualfuse.hub import LoadedModel
from dualfuse.tasks.prediction import Prediction

ImageFile = Path | str | bytes
"""A path, or the bytes of an image file."""


@torch.inference_mode()
def predict(
    model: LoadedModel, image: ImageFile | Sequence[ImageFile] | None = None, text: str = "", *, top: int = 5
) -> Prediction:
    """Run the heads of a model on an image, a text, or both.

    A model trained for questions or labels returns the ``top`` answers; one that compares two images (NLVR2) takes
    both. One trained on pairs returns whether image and text match or, for a text with [MASK] or <mask>, the tokens of
    the masks; one trained on text alone does the latter without an image. Raises DualfuseError if the model cannot
    take the inputs, and ``OSError`` for a file that cannot be read.
    """
    task, processor = model.task, model.processor
    return task.predict([task.read_input(read_inputs(image, text), processor)], processor, at_least_one(top))[0]


def read_inputs(image: ImageFile | Sequence[ImageFile] | None, text: str) -> Sample:
    """Read image files; return them with the text as a sample."""
    images = () if image is None else (image,) if isinstance(image, ImageFile) else tuple(image)
    first, *others = [_read(each) for each in images] or [b""]
    return Sample("input", first, (text,) if text.strip() else (), other_images=tuple(others))


def _read(image: ImageFile) -> bytes:
    return image if isinstance(image, bytes) else read_bounded(Path(image).expanduser(), MAX_IMAGE)


def at_least_one(top: int) -> int:
    """Return ``top``; DualfuseError if it is below 1."""
    if top < 1:
        raise DualfuseError(f"top is {top}; give the number of answers to return, 1 or more")
    return top
