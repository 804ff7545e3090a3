"""Visual tokenizers: networks that turn an image into a grid of codes, the targets of masked image modeling."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from dualfuse.errors import DualfuseError


class VisualTokenizer(nn.Module, ABC):
    """A network that assigns one of ``codes`` codes to every square of ``stride`` x ``stride`` pixels."""

    codes: int
    stride: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return codes (B, h * w) from 0 to ``codes`` - 1, row by row, of images (B, 3, h s, w s) from 0 to 1."""


def check_strides(images: Tensor, stride: int) -> None:
    """Raise ``DualfuseError`` for images (B, 3, H, W) whose sides are not multiples of ``stride``."""
    height, width = images.shape[-2:]
    if height % stride or width % stride:
        raise DualfuseError(f"{height} x {width} pixels are not a multiple of the tokenizer's stride, {stride}")
