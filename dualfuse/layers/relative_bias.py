"""VLMo's relative position bias: index, table, and resizing of the table to another image size."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualfuse.errors import DualfuseError
from dualfuse.layers.resizing import Resizable, check_text_length, times

Grid = tuple[int, int]
"""Height and width of an image in patches."""


class RelativeBias(Resizable):
    """A table of biases for all layers of a model, indexed by relative position (BEiT, VLMo).

    Table rows: (2h-1)(2w-1) distances between patches, 3 for the image's class token, 2 between modalities, 2t-3
    distances between text tokens, and 3 for the text's class token. Columns: layers x heads.
    """

    def __init__(self, *, window: Grid, text: int, layers: int, heads: int) -> None:
        """``window`` is the grid of patches of the table, ``text`` the maximum text length."""
        super().__init__()
        self.window, self.text, self.layers, self.heads = window, text, layers, heads
        self.table = nn.Parameter(torch.zeros(_distances(window) + 3 + 2 * text + 2, layers * heads))

    def forward(self, *, text: int = 0, grid: Grid | tuple[()] = ()) -> Tensor:
        """Return (L, H, N, N) for ``text`` tokens followed by an image of ``grid``; either may be absent.

        For a grid other than the window, the table is resized on the fly, with gradient. Raises ``DualfuseError`` for
        a text longer than the maximum.
        """
        if text > self.text:
            raise DualfuseError(f"a text of {text} tokens is longer than the {self.text} tokens of the position bias")
        table = self.table if not grid or grid == self.window else resize_table(self.table, self.window, grid)
        index = joint_index(text, grid, grid or self.window, self.text).to(table.device)
        bias = F.embedding(index, table)  # (N, N, L * H); faster in the backward pass than indexing
        return bias.permute(2, 0, 1).unflatten(0, (self.layers, self.heads)).contiguous()

    def resize_tensor(
        self, name: str, tensor: Tensor, source: RelativeBias, *, has_text: bool
    ) -> tuple[Tensor, str] | None:
        """Resize the table; without texts in the source, this module keeps its own rows for them."""
        rule = f"patches {times(source.window)} to {times(self.window)}, texts"
        if not has_text:
            images = resize_table(tensor[: num_image_rows(source.window)].float(), source.window, self.window)
            if images.shape[1] != self.table.shape[1]:
                return None
            table = torch.cat([images.to(tensor), self.table.detach()[len(images) :].to(tensor)])
            return table, f"{rule} keep their initial values"
        if (source.window, source.text) == (self.window, self.text) or len(tensor) != len(source.table):
            return None
        check_text_length(source.text, self.text)
        table = cut_texts(resize_table(tensor.float(), source.window, self.window), self.window, source.text, self.text)
        return table.to(tensor.dtype), f"{rule} {source.text} to {self.text}"

    def extend_tensor(self, name: str, tensor: Tensor, source: RelativeBias) -> Tensor | None:
        """Add rows for the distances in the longer texts of this module."""
        return extend_texts(tensor, source.window, source.text, self.text) if self.text > source.text else None


def _distances(grid: Grid) -> int:
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a tensor cached during evaluation must be usable in training
def joint_index(text: int, grid: Grid | tuple[()], window: Grid, longest_text: int) -> Tensor:
    """Return the table rows (N, N) of query i and key j for ``text`` tokens followed by an image of ``grid``."""
    patches = _distances(window)
    text_to_image, image_to_text = patches + 3, patches + 4
    position = torch.arange(text)
    # key minus query: the opposite sign of the image's distances
    tokens = position[None, :] - position[:, None] + patches + longest_text + 3
    last = patches + 3 + 2 * longest_text + 1
    if text:
        tokens[0, :], tokens[:, 0], tokens[0, 0] = last - 2, last - 1, last
    if not grid:
        return tokens
    image = image_index(grid)
    right = torch.full((text, len(image)), text_to_image)
    left = torch.full((len(image), text), image_to_text)
    return torch.cat([torch.cat([tokens, right], dim=1), torch.cat([left, image], dim=1)])


def image_index(grid: Grid) -> Tensor:
    """Return the table rows (1 + hw, 1 + hw) of a class token and its patches: query minus key."""
    height, width = grid
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    rows, columns = y[:, None] - y[None, :] + height - 1, x[:, None] - x[None, :] + width - 1
    index = torch.empty(1 + height * width, 1 + height * width, dtype=torch.long)
    index[1:, 1:] = rows * (2 * width - 1) + columns
    distances = _distances(grid)
    index[0, :], index[:, 0], index[0, 0] = distances, distances + 1, distances + 2
    return index


def resize_table(table: Tensor, source: Grid, target: Grid) -> Tensor:
    """Return the table (R, C) for images of another grid; rows other than distances between patches are unchanged.

    As in BEiT's loader, source distances are placed on a geometric axis, and a cubic spline through them is evaluated
    at the integer distances of the target. The result is linear in the table, so gradients pass.
    """
    count = _distances(source)
    patches = table[:count].unflatten(0, (2 * source[0] - 1, 2 * source[1] - 1))
    rows, columns = (_resizing(2 * old - 1, 2 * new - 1).to(table) for old, new in zip(source, target, strict=True))
    resized = torch.einsum("yh,hwc,xw->yxc", rows, patches, columns)
    return torch.cat([resized.flatten(0, 1), table[count:]])


def num_image_rows(window: Grid) -> int:
    """Return the number of leading table rows that concern images only."""
    return _distances(window) + 3


def cut_texts(table: Tensor, window: Grid, source: int, target: int) -> Tensor:
    """Return the table (R, C) for texts of up to ``target`` instead of ``source`` tokens, without larger distances."""
    first, last = _distances(window) + 5, len(table) - 3  # of the distances between text tokens
    cut = source - target
    return torch.cat([table[:first], table[first + cut : last - cut], table[last:]])


def extend_texts(table: Tensor, window: Grid, source: int, target: int) -> Tensor:
    """Return the table (R, C) for texts of up to ``target`` instead of ``source`` tokens.

    Rows that exist are kept; larger distances have the bias of the largest trained one in their direction, as T5's
    distances beyond its maximum have.
    """
    first, last, new = _distances(window) + 5, len(table) - 3, target - source  # of the distances between text tokens
    parts = [table[:first], table[first].expand(new, -1), table[first:last], table[last - 1].expand(new, -1)]
    return torch.cat([*parts, table[last:]])


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _resizing(source: int, target: int) -> Tensor:
    """Return the matrix (target, source) that resizes one axis of distances."""
    if source == target:
        return torch.eye(source, dtype=torch.float64)
    if source == 1:  # a single patch has a single distance
        return torch.ones(target, 1, dtype=torch.float64)
    axis = _geometric_axis(source, target)
    distances = np.clip(np.arange(target) - target // 2, axis[0], axis[-1])
    return torch.from_numpy(_cubic_spline(axis, distances))


def _geometric_axis(source: int, target: int) -> np.ndarray:
    """Return 0, +-1, +-(1 + q), +-(1 + q + q^2) ..., with q such that the last reaches ``target // 2``.

    q is the last value that the bisection evaluates, as in the official code; the interval's middle is another one.
    """
    low, high, ratio = 1.01, 1.5, 1.0
    steps = source // 2
    while high - low > 1e-6:
        ratio = (low + high) / 2
        reached = (1 - ratio**steps) / (1 - ratio)
        low, high = (low, ratio) if reached > target // 2 else (ratio, high)
    right = np.cumsum(ratio ** np.arange(steps))
    return np.concatenate([-right[::-1], [0.0], right])


def _cubic_spline(points: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the matrix (X, P) that evaluates at ``x`` (X,) the spline interpolating values at ``points`` (P,).

    Knots are at all points except the second and the second to last ("not a knot"), as in FITPACK.
    """
    degree = min(3, len(points) - 1)
    inner = points[2:-2] if degree == 3 else points[1:1]
    knots = np.concatenate([[points[0]] * (degree + 1), inner, [points[-1]] * (degree + 1)])
    return _b_splines(x, knots, degree) @ np.linalg.inv(_b_splines(points, knots, degree))


def _b_splines(x: np.ndarray, knots: np.ndarray, degree: int) -> np.ndarray:
    """Return the values (X, len(knots) - degree - 1) of the B-splines at x (Cox and de Boor)."""
    last_interval = np.flatnonzero(np.diff(knots) > 0)[-1]
    interval = np.minimum(np.searchsorted(knots, x, side="right") - 1, last_interval)
    values = np.eye(len(knots) - 1)[interval]
    for order in range(1, degree + 1):
        left, right = knots[:-order], knots[order:]
        width = np.where(right > left, right - left, 1.0)
        rising = (x[:, None] - left[:-1]) / width[:-1] * values[:, :-1]
        falling = (right[1:] - x[:, None]) / width[1:] * values[:, 1:]
        values = rising * (right[:-1] > left[:-1]) + falling * (right[1:] > left[1:])
    return values
