"""Classes for images of any size, from a model that sees windows of one size: what overlaps is averaged."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from dualfuse.data.image.joint_crop import pad_to_size
from dualfuse.layers.upernet import enlarge

AT_ONCE = 8
"""Windows that are looked at together."""
MOST_VALUES = 64_000_000
"""Numbers that are held while scores are brought to the size of an image; 256 MB."""

Look = Callable[[Tensor], Tensor]
"""Turns windows (K, 3, h, w) into scores (K, C, h, w)."""


def sliding_window(look: Look, image: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Return scores (C, H, W) of a normalised ``image`` (3, H, W): in each pixel the mean of the windows over it.

    Windows follow each other by ``stride``; the last of a row or column ends where the image does. An image that is
    smaller than a window has zeros below and to the right.
    """
    height, width = image.shape[1:]
    image = pad_to_size(image, window, 0.0)
    rows, columns = (starts(*sides) for sides in zip(image.shape[1:], window, stride, strict=True))
    places = list(product(rows, columns))
    sums: Tensor | None = None
    counts = image.new_zeros(image.shape[1:])
    for first in range(0, len(places), AT_ONCE):
        some = places[first : first + AT_ONCE]
        scores = look(torch.stack([image[:, top : top + window[0], left : left + window[1]] for top, left in some]))
        sums = scores.new_zeros(scores.shape[1], *image.shape[1:]) if sums is None else sums
        for (top, left), score in zip(some, scores, strict=True):
            sums[:, top : top + window[0], left : left + window[1]] += score
            counts[top : top + window[0], left : left + window[1]] += 1
    assert sums is not None  # there is one window at least
    return (sums / counts)[:, :height, :width]


def starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along one side; the last one ends at ``length``, which is ``window`` at least."""
    number = -(-(length - window) // stride) + 1
    return [min(place * stride, length - window) for place in range(number)]


def whole_image(look: Look, image: Tensor, multiple: int) -> Tensor:
    """Return scores (C, H, W) of a whole image at once, with zeros up to ``multiple`` below and to the right."""
    height, width = image.shape[1:]
    rows, columns = (-(-side // multiple) * multiple for side in (height, width))
    return look(pad_to_size(image, (rows, columns), 0.0)[None])[0, :, :height, :width]


def best_class(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the number (H, W) of the class that is best where ``scores`` (C, h, w) are brought to ``size``.

    Classes are gone through in parts, so that large images of many classes need little memory.
    """
    best: Tensor | None = None
    number = torch.zeros(size, dtype=torch.long, device=scores.device)
    step = max(1, MOST_VALUES // (size[0] * size[1]))
    for first in range(0, len(scores), step):
        value, place = enlarge(scores[None, first : first + step], size)[0].max(0)
        if best is None:
            best, number = value, place
        else:
            better = value > best
            best, number = torch.where(better, value, best), torch.where(better, first + place, number)
    return number
