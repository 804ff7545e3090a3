"""RandAugment: each operation against its definition written out with numpy, and the odds of the draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dualfuse.data.image import randaugment as ra

VLMO = ra.POLICIES["vlmo"]


def noise(height: int = 32, width: int = 64, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (height, width, 3), dtype=np.uint8)


def blob(side: int = 64) -> np.ndarray:
    """A smooth image, on which interpolation rounds to almost nothing."""
    y, x = np.mgrid[:side, :side]
    return np.stack([128 + 100 * np.sin(x / (6 + c)) * np.cos(y / (8 - c)) for c in range(3)], -1).astype(np.uint8)


def test_auto_contrast_stretches_each_channel() -> None:
    pixels = noise(low=40, high=180).astype(float) * (1, 0.9, 0.8)
    pixels = pixels.astype(np.uint8)
    low, high = pixels.min((0, 1)), pixels.max((0, 1))
    expected = (pixels.astype(float) - low) * 255 / (high - low)
    assert np.abs(np.asarray(VLMO["auto_contrast"](Image.fromarray(pixels), 1.0)) - expected).max() <= 1


def test_equalize_maps_levels_to_their_rank() -> None:
    pixels = (noise(64, 64) / 255.0) ** 3 * 200  # mostly dark
    pixels = pixels.astype(np.uint8)
    found = np.asarray(VLMO["equalize"](Image.fromarray(pixels), 1.0))
    for channel in range(3):
        values = pixels[..., channel]
        counts = np.bincount(values.ravel(), minlength=256)
        step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
        below = np.concatenate(([0], counts.cumsum()[:-1]))
        expected = np.minimum((below + step // 2) // step, 255)[values]
        np.testing.assert_array_equal(found[..., channel], expected)


def test_brighten_multiplies() -> None:
    expected = np.minimum(noise() * 1.36, 255)
    assert np.abs(np.asarray(VLMO["brighten"](Image.fromarray(noise()), 1.0)) - expected).max() <= 1


def test_sharpen_subtracts_the_smoothed_image() -> None:
    pixels = noise(12, 14).astype(float)
    smoothed = pixels.copy()
    for y in range(1, 11):
        for x in range(1, 13):
            around = pixels[y - 1 : y + 2, x - 1 : x + 2].sum((0, 1))
            smoothed[y, x] = np.floor((around + 4 * pixels[y, x]) / 13 + 0.5)
    expected = np.clip(smoothed + 1.36 * (pixels - smoothed), 0, 255)
    assert np.abs(np.asarray(VLMO["sharpen"](Image.fromarray(noise(12, 14)), 1.0)) - expected).max() <= 1


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("shift", [(1, 0), (0, -1), (-7, 7)])
def test_shifts_by_whole_pixels_equal_interpolation(side: int, shift: tuple[int, int]) -> None:
    image, inverse = Image.fromarray(noise(side, side)), (1, 0, float(shift[0]), 0, 1, float(shift[1]))
    how = Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    interpolated = image.transform(image.size, *how, fillcolor=ra.FILL)
    np.testing.assert_array_equal(
        np.asarray(ra.affine(image, inverse, Image.Resampling.BILINEAR)), np.asarray(interpolated)
    )


def test_translate_shifts_one_pixel_of_32_and_seven_of_224() -> None:
    pixels = noise(32, 64)
    right = np.asarray(VLMO["translate_x"](Image.fromarray(pixels), -1))
    np.testing.assert_array_equal(right[:, 2:], pixels[:, :-2])
    assert (right[:, :2] == 128).all()
    up = np.asarray(VLMO["translate_y"](Image.fromarray(pixels), 1))
    np.testing.assert_array_equal(up[:-1], pixels[1:])
    assert (up[-1:] == 128).all()
    large = noise(224, 224)
    np.testing.assert_array_equal(np.asarray(VLMO["translate_x"](Image.fromarray(large), 1))[:, :-7], large[:, 7:])


def sampled(pixels: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``pixels`` interpolated at (x, y), in pixels from the first one's middle, and where that was well inside."""
    inside = (x >= 0) & (y >= 0) & (x <= pixels.shape[1] - 1.001) & (y <= pixels.shape[0] - 1.001)
    left, top = np.where(inside, np.floor(x), 0).astype(int), np.where(inside, np.floor(y), 0).astype(int)
    across, down = (x - left)[..., None], (y - top)[..., None]
    upper = pixels[top, left] * (1 - across) + pixels[top, left + 1] * across
    lower = pixels[top + 1, left] * (1 - across) + pixels[top + 1, left + 1] * across
    return upper * (1 - down) + lower * down, inside


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "rotate"])
def test_geometry_follows_the_formula(name: str, sign: float) -> None:
    pixels = blob()
    row, column = np.mgrid[:64, :64] + 0.5
    turn = np.deg2rad(21) * sign
    x, y = column - 32, row - 32
    points = {
        "shear_x": (column + sign * 0.21 * row, row),
        "shear_y": (column, row + sign * 0.21 * column),
        # the image's y points down: turning it counter-clockwise looks up each point clockwise of it
        "rotate": (x * np.cos(turn) - y * np.sin(turn) + 32, x * np.sin(turn) + y * np.cos(turn) + 32),
    }[name]
    expected, inside = sampled(pixels.astype(float), points[0] - 0.5, points[1] - 0.5)
    found = np.asarray(VLMO[name](Image.fromarray(pixels), sign)).astype(float)
    assert inside.mean() > 0.6
    assert np.abs(found - expected)[inside].max() <= 1.5
    far_outside = (np.maximum(np.abs(points[0] - 32), np.abs(points[1] - 32))) > 33
    assert far_outside.any() and (found[far_outside] == 128).all()


def test_there_are_ten_operations() -> None:
    assert VLMO.keys() == {
        *("identity", "auto_contrast", "equalize", "brighten", "sharpen"),
        *("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    }


def test_result_depends_on_the_generator_only() -> None:
    image = torch.from_numpy(blob()).permute(2, 0, 1)
    before = image.clone()
    for seed in range(30):
        first, other = np.random.default_rng(seed), np.random.default_rng(seed)
        found = ra.rand_augment(image, "vlmo", first)
        np.random.seed(seed)
        assert found.dtype == torch.uint8 and found.shape == image.shape
        assert torch.equal(found, ra.rand_augment(image.contiguous(), "vlmo", other))
    assert torch.equal(image, before)


def test_number_of_draws_is_constant() -> None:
    image = torch.from_numpy(blob()).permute(2, 0, 1)
    small = image[:, :8, :8]
    for seed in range(30):
        first, other = np.random.default_rng(seed), np.random.default_rng(seed)
        ra.rand_augment(image, "vlmo", first)
        ra.rand_augment(small, "vlmo", other)
        assert first.random() == other.random()


def test_operations_are_equally_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, int] = {}

    def counted(name: str) -> ra.Operation:
        def operation(pil_image: Image.Image, amount: float) -> Image.Image:
            assert amount in (-1, 1)
            counts[f"{name}{amount:+.0f}"] = counts.get(f"{name}{amount:+.0f}", 0) + 1
            return pil_image

        return operation

    monkeypatch.setitem(ra.POLICIES, "vlmo", {name: counted(name) for name in VLMO})
    rng, image = np.random.default_rng(0), torch.zeros(3, 2, 2, dtype=torch.uint8)
    for _ in range(10_000):
        ra.rand_augment(image, "vlmo", rng)
    for name in VLMO:  # 2 operations x 1/2 applied x 1/10; half of them in each direction
        assert counts[f"{name}+1"] == pytest.approx(500, abs=95)
        assert counts[f"{name}-1"] == pytest.approx(500, abs=95)
