"""RandAugment of BEiT's fine-tuning: strengths worked out by hand from timm's rules, and the odds of the draws."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dualfuse.data.image import randaugment as ra
from dualfuse.data.image.transform import Augment, ImageTransform

TIMM = ra.POLICIES["timm"]
STRIP = (0, 1, 25, 26, 64, 127, 128, 180, 255)


def strip(values: tuple[int, ...] = STRIP) -> Image.Image:
    return Image.fromarray(np.repeat(np.array([values], np.uint8)[:, :, None], 3, axis=2))


def levels(image: Image.Image) -> list[int]:
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("name", "level", "wanted"),
    [
        ("invert", 0.9, [255, 254, 230, 229, 191, 128, 127, 75, 0]),
        ("posterize", 0.9, [0, 0, 0, 0, 0, 0, 128, 128, 128]),  # 4 - int(3.6): the highest bit
        ("posterize", 0.74, [0, 0, 0, 0, 64, 64, 128, 128, 192]),  # int(2.96): two bits
        ("posterize", 0.0, [0, 0, 16, 16, 64, 112, 128, 176, 240]),
        ("posterize", 1.0, [0] * 9),
        ("solarize", 0.9, [0, 1, 25, 229, 191, 128, 127, 75, 0]),  # from 256 - int(230.4) = 26 on
        ("solarize_add", 0.9, [99, 100, 124, 125, 163, 226, 128, 180, 255]),  # int(99.0) below 128
        ("solarize_add", 0.85, [93, 94, 118, 119, 157, 220, 128, 180, 255]),  # int(93.5)
    ],
)
def test_color_operations_on_known_values(name: str, level: float, wanted: list[int]) -> None:
    for sign in (-1.0, 1.0):
        assert levels(TIMM[name](strip(), sign * level)) == wanted


def test_enhancing_interpolates_two_images() -> None:
    """1.81 or 0.19 parts of the image at level 0.9, the rest of black, of its mean, of its greys."""
    assert (ra.factor(0.9), ra.factor(-0.9)) == (pytest.approx(1.81), pytest.approx(0.19))
    values = np.array(STRIP, float)
    for sign, share in ((1, 1.81), (-1, 0.19)):
        assert np.abs(levels(TIMM["brightness"](strip(), sign * 0.9)) - np.clip(values * share, 0, 255)).max() <= 1
        mean = round(values.mean())
        wanted = np.clip(mean + share * (values - mean), 0, 255)
        assert np.abs(levels(TIMM["contrast"](strip(), sign * 0.9)) - wanted).max() <= 1
        orange = np.array([200.0, 120.0, 40.0])
        grey = orange @ (0.299, 0.587, 0.114)
        image = Image.fromarray(np.tile(orange.astype(np.uint8), (2, 2, 1)))
        found = np.asarray(TIMM["color"](image, sign * 0.9))[0, 0]
        assert np.abs(found - np.clip(grey + share * (orange - grey), 0, 255)).max() <= 1.5
    flat = Image.fromarray(np.full((5, 5, 3), 90, np.uint8))
    flat.putpixel((2, 2), (116, 116, 116))  # smoothed: 5 of 13 parts, 90 + 26 * 5 / 13 = 100
    assert TIMM["sharpness"](flat, 0.5).getpixel((2, 2)) == (123, 123, 123)  # 100 + 1.45 * 16
    assert TIMM["sharpness"](flat, -0.5).getpixel((2, 2)) == (108, 108, 108)  # 100 + 0.55 * 16 = 108.8


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_translations_are_shares_of_the_side() -> None:
    """0.8 * 0.45 = 36 %."""
    pixels = noise(50, 100)
    right = np.asarray(TIMM["translate_x"](Image.fromarray(pixels), -0.8))
    assert np.abs(right[:, 36:].astype(int) - pixels[:, :-36]).max() <= 1
    assert (right[:, :36] == 128).all()
    up = np.asarray(TIMM["translate_y"](Image.fromarray(pixels), 0.8))
    assert np.abs(up[:-18].astype(int) - pixels[18:]).max() <= 1
    assert (up[-18:] == 128).all()


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_shear_and_rotation_follow_the_formula(sign: float) -> None:
    """A bright dot on black is found where 0.27 of its height, or 27 degrees, bring it."""
    side, dot = 101, (70, 40)  # x, y
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[dot[1] - 1 : dot[1] + 2, dot[0] - 1 : dot[0] + 2] = 255
    image = Image.fromarray(pixels)
    x, y = dot[0] + 0.5, dot[1] + 0.5
    turn, middle = np.deg2rad(27) * sign, side / 2
    wanted = {
        "shear_x": (x - sign * 0.27 * y, y),
        "shear_y": (x, y - sign * 0.27 * x),
        "rotate": (
            middle + (x - middle) * np.cos(turn) + (y - middle) * np.sin(turn),
            middle - (x - middle) * np.sin(turn) + (y - middle) * np.cos(turn),
        ),
    }
    for name, point in wanted.items():
        found = np.asarray(TIMM[name](image, sign * 0.9))[..., 0].astype(float)
        light = np.where(found > 140, found, 0)  # not the grey around
        rows, columns = np.mgrid[:side, :side] + 0.5
        centre = (columns * light).sum() / light.sum(), (rows * light).sum() / light.sum()
        assert np.abs(np.subtract(centre, point)).max() < 0.5, name


def test_auto_contrast_and_equalize() -> None:
    assert np.abs(np.subtract(levels(TIMM["auto_contrast"](strip((50, 75, 100)), 0.9)), (0, 127, 255))).max() <= 1
    found = levels(TIMM["equalize"](strip(tuple(range(100, 164)) * 256), 0.9))
    assert found[0] == 0 and found[63] == 255 and np.abs(np.diff(found[:64]) - 255 / 63).max() < 1.1


def test_there_are_fifteen_operations() -> None:
    assert list(TIMM) == [
        *("auto_contrast", "equalize", "invert", "posterize", "solarize", "solarize_add"),
        *("color", "contrast", "brightness", "sharpness"),
        *("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    ]


def test_operations_are_equally_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, float]] = []

    def counted(number: int) -> ra.Operation:
        def operation(pil_image: Image.Image, amount: float) -> Image.Image:
            drawn.append((number, amount))
            return pil_image

        return operation

    monkeypatch.setitem(ra.POLICIES, "timm", {name: counted(number) for number, name in enumerate(TIMM)})
    rng, image = np.random.default_rng(0), torch.zeros(3, 2, 2, dtype=torch.uint8)
    for _ in range(15_000):
        ra.rand_augment(image, "timm", rng)
    numbers, amounts = (np.array(column) for column in zip(*drawn, strict=True))
    strengths, signs = np.abs(amounts), np.sign(amounts)
    counts = np.bincount(numbers)
    assert counts.shape == (15,) and np.abs(counts - 1000).max() < 130  # 2 x 1/2 x 1/15
    assert abs(signs.mean()) < 0.03 and strengths.max() == 1.0 and strengths.min() > 0.6
    assert strengths.mean() == pytest.approx(0.9, abs=0.003) and strengths.std() == pytest.approx(0.05, abs=0.003)


def test_transform_uses_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[:24, :24]
    file = io.BytesIO()
    Image.fromarray(np.stack([x * 9, y * 9, x + y], -1).astype(np.uint8)).save(file, "PNG")
    data, rng = file.getvalue(), np.random.default_rng
    ours, theirs = (
        ImageTransform((24, 24), Augment(crop=(1, 1), flip=0, rand_augment_policy=whose)) for whose in ("vlmo", "timm")
    )
    assert any(not torch.equal(ours(data, rng(seed)), theirs(data, rng(seed))) for seed in range(9))
    assert all(torch.equal(theirs(data, rng(seed)), theirs(data, rng(seed))) for seed in range(9))
    one, other = rng(3), rng(3)
    theirs(data, one)
    monkeypatch.setattr(ra, "PROBABILITY", 0.0)
    theirs(data, other)
    assert one.random() == other.random()  # as many values are drawn whatever is applied
