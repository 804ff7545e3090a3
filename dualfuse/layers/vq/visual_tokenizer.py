"""What turns an image into a grid of numbers: the words that masked image modelling predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from dualfuse.errors import DualfuseError


class VisualTokenizer(nn.Module, ABC):
    """A network that gives every square of ``stride`` pixels one of ``codes`` numbers."""

    codes: int
    stride: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return numbers (B, h * w) from 0 to ``codes`` - 1, row by row, of images (B, 3, h s, w s) from 0 to 1."""


def check_strides(images: Tensor, stride: int) -> None:
    """Refuse images (B, 3, H, W) that are no whole number of squares."""
    height, width = images.shape[-2:]
    if height % stride or width % stride:
        raise DualfuseError(f"{height} x {width} pixels are no multiple of the tokenizer's stride, {stride}")
