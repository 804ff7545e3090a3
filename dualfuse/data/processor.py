"""The image transform and the tokenizer of a model."""

from __future__ import annotations

from dataclasses import dataclass

from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.text.tokenizer import TextTransform


@dataclass(frozen=True)
class Processor:
    """The transforms from the bytes of an image, and from a text, to tensors."""

    image: ImageTransform
    text: TextTransform
