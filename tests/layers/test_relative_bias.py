"""The relative position bias against a double loop over tokens, and its resizing against polynomials and SciPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from dualfuse.layers.relative_bias import Grid, RelativeBias, joint_index, resize_table

GOLDEN = Path(__file__).parents[1] / "golden" / "vlmo" / "resize.safetensors"
GRIDS = [(4, 4), (2, 5), (5, 2), (1, 3), (1, 1)]


def naive_row(i: int, j: int, text: int, grid: Grid, longest: int) -> int:
    """Return the table row of query i and key j for ``text`` tokens followed by a class token and patches."""
    height, width = grid
    after_patches = (2 * height - 1) * (2 * width - 1)
    to_image, to_text, words = after_patches + 3, after_patches + 4, after_patches + 5
    class_row = words + 2 * longest - 3
    if i < text and j < text:
        if i == 0 and j == 0:
            return class_row + 2
        if i == 0 or j == 0:
            return class_row if i == 0 else class_row + 1
        return words + (longest - 2) + (j - i)
    if i < text:
        return to_image
    if j < text:
        return to_text
    i, j = i - text, j - text
    if i == 0 or j == 0:
        return after_patches + (2 if i == j else 0 if i == 0 else 1)
    (y, x), (v, u) = divmod(i - 1, width), divmod(j - 1, width)
    return (y - v + height - 1) * (2 * width - 1) + x - u + width - 1


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("text", [0, 1, 2, 7])
def test_index_matches_a_double_loop(text: int, grid: Grid) -> None:
    tokens = text + 1 + grid[0] * grid[1]
    wanted = [[naive_row(i, j, text, grid, longest=7) for j in range(tokens)] for i in range(tokens)]
    assert joint_index(text, grid, grid, 7).tolist() == wanted


@pytest.mark.parametrize("text", [1, 2, 7])
def test_text_index_without_image_matches_a_double_loop(text: int) -> None:
    wanted = [[naive_row(i, j, text, (2, 5), longest=7) for j in range(text)] for i in range(text)]
    assert joint_index(text, (), (2, 5), 7).tolist() == wanted


def test_published_table_sizes() -> None:
    """At 224 pixels with 40 tokens, and with the maximum text length of 196."""
    index = joint_index(40, (14, 14), (14, 14), 196)
    assert index.shape == (237, 237)
    assert (index[1, 1], index[1:40, 1:40].min(), index[1:40, 1:40].max()) == (928, 890, 966)
    assert (index[0, 50], index[50, 0]) == (732, 733)
    longest = joint_index(196, (), (14, 14), 196)[1:, 1:]
    assert (longest.min(), longest.max()) == (734, 1122)
    with torch.device("meta"):
        rows = [len(RelativeBias(window=(g, g), text=196, layers=1, heads=1).table) for g in (14, 24, 30)]
    assert rows == [1126, 2606, 3878]


def randomized(window: Grid, *, text: int = 6) -> RelativeBias:
    torch.manual_seed(0)
    bias = RelativeBias(window=window, text=text, layers=2, heads=3).double()
    assert not bias.table.any()
    nn.init.normal_(bias.table)
    return bias


def test_each_layer_and_head_reads_its_own_column() -> None:
    bias, index = randomized((2, 3)), joint_index(4, (2, 3), (2, 3), 6)
    read = bias(text=4, grid=(2, 3))
    assert read.shape == (2, 3, 11, 11)
    for layer in range(2):
        for head in range(3):
            assert torch.equal(read[layer, head], bias.table[:, layer * 3 + head][index])


def test_the_table_has_no_unused_row() -> None:
    """The longest text with an image of the window reads every row."""
    bias = randomized((2, 3))
    bias(text=6, grid=(2, 3)).sum().backward()
    assert bias.table.grad is not None and bias.table.grad.all()


def test_a_text_longer_than_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="a text of 7 tokens is longer than the 6"):
        randomized((2, 2))(text=7)


@pytest.mark.parametrize("target", [(4, 6), (2, 2), (3, 9), (1, 7)])
def test_on_the_fly_resizing_matches_a_resized_table(target: Grid) -> None:
    bias = randomized((3, 4))
    other = RelativeBias(window=target, text=6, layers=2, heads=3).double()
    other.load_state_dict({"table": resize_table(bias.table, (3, 4), target)})
    assert_close(bias(text=5, grid=target), other(text=5, grid=target))
    assert_close(bias(grid=target), other(grid=target))


def test_resizing_to_the_same_size_is_the_identity() -> None:
    bias = randomized((3, 4))
    assert torch.equal(resize_table(bias.table, (3, 4), (3, 4)), bias.table)
    one_axis = resize_table(bias.table, (3, 4), (3, 6))
    assert len(one_axis) == 5 * 11 + len(bias.table) - 5 * 7


@pytest.mark.parametrize("target", [(5, 6), (2, 3)])
def test_rows_of_other_distances_are_unchanged(target: Grid) -> None:
    bias = randomized((3, 4))
    resized = resize_table(bias.table, (3, 4), target)
    assert torch.equal(resized[-17:], bias.table[-17:])
    assert len(resized) == (2 * target[0] - 1) * (2 * target[1] - 1) + 17


def test_gradient_reaches_the_table_through_resizing() -> None:
    bias = randomized((2, 3), text=2)
    assert torch.autograd.gradcheck(
        lambda table: resize_table(table, (2, 3), (3, 4)), bias.table[:, :1].detach().requires_grad_()
    )
    bias(text=2, grid=(3, 4)).pow(2).sum().backward()
    assert bias.table.grad is not None and bias.table.grad[:18].abs().amin() > 0


@pytest.mark.parametrize(
    ("source", "target", "grids"),
    [
        ("rel.src_table", "rel.dst_table", ((4, 4), (6, 6))),
        ("rel224.src_table", "rel224.dst_table_384", ((14, 14), (24, 24))),
        ("rel224.src_table", "rel224.dst_table_480", ((14, 14), (30, 30))),
    ],
)
def test_resizing_as_recorded_from_the_official_code(source: str, target: str, grids: tuple[Grid, Grid]) -> None:
    """Within float32 rounding: an axis from the middle of the last bisection interval is off by 3e-6 to 1e-5."""
    recorded = load_file(GOLDEN)
    assert_close(resize_table(recorded[source], *grids), recorded[target], atol=1e-6, rtol=0)


def axis(source: int, target: int) -> np.ndarray:
    """Return the positions of the 2 * source - 1 distances on the axis of the target (BEiT's loader), by loops."""
    low, high = 1.01, 1.5
    while high - low > 1e-12:
        ratio = (low + high) / 2
        reach = sum(ratio**step for step in range(source - 1))
        low, high = (low, ratio) if reach > target - 1 else (ratio, high)
    right = [sum(ratio**step for step in range(number)) for number in range(1, source)]
    return np.array([-distance for distance in reversed(right)] + [0.0] + right)


def on_axes(values: np.ndarray) -> Tensor:
    """A table of one column whose patch rows are ``values``; the other 7 rows are zero."""
    return torch.cat([torch.from_numpy(values).reshape(-1, 1), torch.zeros(7, 1, dtype=torch.float64)])


def patch_rows(table: Tensor, grid: Grid) -> np.ndarray:
    height, width = 2 * grid[0] - 1, 2 * grid[1] - 1
    return table[: height * width, 0].view(height, width).numpy()


@pytest.mark.parametrize(
    ("source", "target"), [((4, 4), (6, 6)), ((3, 5), (4, 9)), ((5, 4), (4, 6)), ((14, 14), (24, 24))]
)
def test_resizing_is_exact_for_cubic_polynomials(source: Grid, target: Grid) -> None:
    """A not-a-knot cubic spline is exact for cubic polynomials at any points."""

    def polynomial(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        y, x = y[:, None] / target[0], x[None, :] / target[1]
        return 1 + y - 2 * x + 3 * x * y - y**2 + 0.5 * x**3 + x * y**3 - 2 * x**3 * y**3

    axes = [axis(old, new) for old, new in zip(source, target, strict=True)]
    wanted = [np.arange(1 - new, new, dtype=np.float64) for new in target]
    for one, other in zip(axes, wanted, strict=True):
        other.clip(one[0], one[-1], out=other)
    resized = patch_rows(resize_table(on_axes(polynomial(*axes)), source, target), target)
    np.testing.assert_allclose(resized, polynomial(*wanted), atol=1e-4)


@pytest.mark.parametrize(
    ("source", "target"), [((4, 4), (6, 6)), ((3, 5), (4, 9)), ((5, 4), (4, 6)), ((4, 4), (3, 2)), ((14, 14), (30, 24))]
)
def test_resizing_matches_scipy(source: Grid, target: Grid) -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    values = np.random.default_rng(0).normal(size=(2 * source[0] - 1, 2 * source[1] - 1))
    axes = [axis(old, new) for old, new in zip(source, target, strict=True)]
    spline = interpolate.RectBivariateSpline(*axes, values, kx=3, ky=3, s=0)
    wanted = [np.arange(1 - new, new).clip(one[0], one[-1]) for one, new in zip(axes, target, strict=True)]
    resized = patch_rows(resize_table(on_axes(values), source, target), target)
    np.testing.assert_allclose(resized, spline(*wanted), atol=5e-4)  # the axis itself is found to 1e-6


def test_distances_beyond_the_axis_use_the_last_value() -> None:
    """The axis grows by at most 1.5 from point to point, so a small table cannot reach across a large image."""
    values = np.arange(9.0).reshape(3, 3)
    resized = patch_rows(resize_table(on_axes(values), (2, 2), (5, 5)), (5, 5))
    np.testing.assert_allclose(resized[0], resized[3], atol=1e-9)  # distances -4 and -1: the table ends at -1
    np.testing.assert_allclose(resized[3:6, 3:6], values, atol=1e-9)
    single = patch_rows(resize_table(on_axes(np.array([[2.0]])), (1, 1), (2, 3)), (2, 3))
    assert (single == 2).all()
