"""The image transform and the tokenizer of a model."""

from __future__ import annotations

from dataclasses import dataclass

from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.text.tokenizer import TextTransform


@dataclass(frozen=True)
class Processor:
    """Turns the bytes of an image and the string of a text into tensors, in a loader worker."""

    image: ImageTransform
    text: TextTransform
