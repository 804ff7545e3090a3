"""Segmentation of images of any size by a model of fixed input size: scores of overlapping windows are averaged."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from dualfuse.data.image.joint_crop import pad_to_size
from dualfuse.layers.upernet import enlarge

AT_ONCE = 8
"""Windows per forward pass."""
MOST_VALUES = 64_000_000
"""Scores held while they are resized to the image; 256 MB."""

Score = Callable[[Tensor], Tensor]
"""Return scores (K, C, h, w) of windows (K, 3, h, w)."""


def sliding_window(score: Score, image: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Return scores (C, H, W) of a normalised ``image`` (3, H, W): for each pixel the mean over its windows.

    Windows are ``stride`` apart; the last of a row or column ends at the border of the image. An image smaller than a
    window is padded with zeros below and to the right.
    """
    height, width = image.shape[1:]
    image = pad_to_size(image, window, 0.0)
    rows, columns = (starts(*sides) for sides in zip(image.shape[1:], window, stride, strict=True))
    corners = list(product(rows, columns))
    sums: Tensor | None = None
    counts = image.new_zeros(image.shape[1:])
    for first in range(0, len(corners), AT_ONCE):
        some = corners[first : first + AT_ONCE]
        scores = score(torch.stack([image[:, top : top + window[0], left : left + window[1]] for top, left in some]))
        sums = scores.new_zeros(scores.shape[1], *image.shape[1:]) if sums is None else sums
        for (top, left), window_scores in zip(some, scores, strict=True):
            sums[:, top : top + window[0], left : left + window[1]] += window_scores
            counts[top : top + window[0], left : left + window[1]] += 1
    assert sums is not None  # there is at least one window
    return (sums / counts)[:, :height, :width]


def starts(length: int, window: int, stride: int) -> list[int]:
    """Return the starts of windows along one side; the last one ends at ``length``, which is at least ``window``."""
    number = -(-(length - window) // stride) + 1
    return [min(index * stride, length - window) for index in range(number)]


def whole_image(score: Score, image: Tensor, multiple: int) -> Tensor:
    """Return scores (C, H, W) of a whole image at once, padded to a multiple of ``multiple`` below and to the right."""
    height, width = image.shape[1:]
    rows, columns = (-(-side // multiple) * multiple for side in (height, width))
    return score(pad_to_size(image, (rows, columns), 0.0)[None])[0, :, :height, :width]


def best_class(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class index (H, W) with the best of ``scores`` (C, h, w), resized to ``size``.

    Classes are resized in parts, which saves memory for large images with many classes.
    """
    best: Tensor | None = None
    index = torch.zeros(size, dtype=torch.long, device=scores.device)
    step = max(1, MOST_VALUES // (size[0] * size[1]))
    for first in range(0, len(scores), step):
        value, part_index = enlarge(scores[None, first : first + step], size)[0].max(0)
        if best is None:
            best, index = value, part_index
        else:
            better = value > best
            best, index = torch.where(better, value, best), torch.where(better, first + part_index, index)
    return index
