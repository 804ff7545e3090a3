"""Resizing against recorded outputs of transformers and torchvision, and against sizes computed by hand."""

from __future__ import annotations

import io
import json
import math
import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
import tyro
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dualfuse.config import from_json, to_json
from dualfuse.data.image.joint_crop import pad_to_size
from dualfuse.data.image.resize import center_crop, huggingface_size, resize, resize_and_crop, resize_huggingface
from dualfuse.data.image.transform import (
    HUGGING_FACE,
    OFFICIAL_BLIP,
    OFFICIAL_CLIP,
    Augment,
    ImageTransform,
    Preprocess,
)
from dualfuse.recipe import Data

GOLDEN = Path(__file__).parents[2] / "golden" / "bridgetower_preprocess"
NUMBERS = range(5)
WIDE = [0, 2, 3]
SAME = list(NUMBERS) if int(PIL.__version__.split(".")[0]) >= 13 else WIDE
"""Images that the installed Pillow resizes as the recorded version; from 13 on, tall ones are resized height first."""
PLAIN = Augment(crop=(1, 1), flip=0, rand_augment=False)


@pytest.fixture(scope="module")
def images() -> dict[str, Tensor]:
    """Five shapes, each (H, W, 3) uint8; recorded by what manifest.json names."""
    return load_file(GOLDEN / "inputs.safetensors")


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(GOLDEN / "outputs.safetensors")


def png(pixels: Tensor) -> bytes:
    """Of (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


def shown(transform: ImageTransform, images: dict[str, Tensor]) -> Tensor:
    """(5, 3, S, S)"""
    rng = np.random.default_rng(0)
    return torch.stack([transform(png(images[f"image.{number}"]), rng) for number in NUMBERS])


EIGHTS = replace(HUGGING_FACE, divisor=8)
RECORDED = {
    "official.clip": (40, OFFICIAL_CLIP),
    "official.blip": (40, OFFICIAL_BLIP),
    "hf.crop40_div8": (40, EIGHTS),
    "hf.crop42_div8": (42, EIGHTS),
}


@pytest.mark.parametrize("name", RECORDED)
def test_images_equal_recorded_ones(name: str, images: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    side, preprocess = RECORDED[name]
    found = shown(ImageTransform((side, side), preprocess=preprocess), images)
    torch.testing.assert_close(found[SAME], expected[f"{name}.pixel_values"][SAME], atol=1e-5, rtol=0)
    torch.testing.assert_close(found, expected[f"{name}.pixel_values"], atol=1e-5 if len(SAME) == 5 else 0.07, rtol=0)
    assert expected.get(f"{name}.pixel_mask", torch.ones(1)).all()


@pytest.mark.parametrize("name", RECORDED)
def test_torch_resampling_is_within_four_grey_levels(
    name: str, images: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    side, preprocess = RECORDED[name]
    found = shown(ImageTransform((side, side), preprocess=replace(preprocess, resampling="torch")), images)
    levels = (found - expected[f"{name}.pixel_values"]) * 255 * torch.tensor(preprocess.std).view(3, 1, 1)
    assert 0.99 < levels.abs().max() < 4.01 and levels.abs().mean() < 0.1
    assert levels[WIDE].abs().max() < 2.01 and levels[WIDE].abs().mean() < 0.01


def test_processor_without_the_crop_pads_the_batch(images: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    tensors = [images[f"image.{number}"].permute(2, 0, 1) for number in NUMBERS]
    resized = [EIGHTS.normalize(resize_huggingface(tensor, 40, EIGHTS.divisor, "pillow")) for tensor in tensors]
    height, width = (max(tensor.shape[axis] for tensor in resized) for axis in (1, 2))
    values = torch.stack([pad_to_size(tensor, (height, width), 0.0) for tensor in resized])
    mask = torch.stack([pad_to_size(torch.ones_like(tensor[0]), (height, width), 0.0) for tensor in resized]).bool()
    torch.testing.assert_close(values[SAME], expected["hf.nocrop_div8.pixel_values"][SAME], atol=1e-5, rtol=0)
    assert mask.dtype == torch.bool and not mask.all()
    torch.testing.assert_close(mask.to(torch.int64), expected["hf.nocrop_div8.pixel_mask"].to(torch.int64))


def test_recorded_sizes_of_photos() -> None:
    for example in json.loads((GOLDEN / "manifest.json").read_text())["resize_examples"]:
        for side in (288, 294):
            found = huggingface_size(*example["input_hw"], side, 32)
            assert list(found) == example[f"shortest_{side}_div_32"], (example, side)


def test_narrow_images_have_black_borders() -> None:
    """300 x 1000: 128 rows of image in the middle of 288; black is normalized like any color."""
    white = torch.full((300, 1000, 3), 255, dtype=torch.uint8)
    found = ImageTransform((288, 288), preprocess=HUGGING_FACE)(png(white), np.random.default_rng(0))
    black = torch.tensor([-m / s for m, s in zip(HUGGING_FACE.mean, HUGGING_FACE.std, strict=True)])
    torch.testing.assert_close(found[:, 79, 5], black)
    torch.testing.assert_close(black, torch.tensor([-1.7923, -1.7521, -1.4802]), atol=1e-4, rtol=0)
    is_black = (found == found[:, :1, :1]).all(2).all(0)
    assert is_black.nonzero().flatten().tolist() == [*range(80), *range(208, 288)]


@pytest.mark.parametrize(
    ("have", "side", "row"),
    [
        (5, 4, "1234"),
        (7, 4, "2345"),
        (9, 4, "3456"),
        (4, 4, "1234"),
        (3, 4, "0123"),
        (1, 4, "0010"),
        (2, 4, "0120"),
    ],
)
def test_center_crop_removes_odd_pixels_at_the_end_and_adds_missing_ones_at_the_start(
    have: int, side: int, row: str
) -> None:
    image = torch.arange(1, have + 1, dtype=torch.uint8).expand(3, side, have)
    for square in (center_crop(image, side), center_crop(image.mT, side).mT):
        assert square.shape == (3, side, side)
        assert {"".join(map(str, pixels)) for pixels in square.flatten(0, 1).tolist()} == {row}


@pytest.mark.parametrize("shape", [(50, 70), (33, 150), (61, 40), (40, 40), (43, 40), (40, 41), (17, 18), (99, 31)])
def test_crop_rounds_as_torchvision(shape: tuple[int, int]) -> None:
    """With exact fractions: the longer side rounded down, half rows to even."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    factor = Fraction(40, min(shape))
    height, width = (math.floor(length * factor) for length in shape)
    top, left = (round(Fraction(length - 40, 2)) for length in (height, width))
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    wanted = np.asarray(resized.crop((left, top, left + 40, top + 40)))
    found = resize_and_crop(torch.from_numpy(pixels).permute(2, 0, 1), 40, "pillow")
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), wanted)


def test_pillow_resampling_applies_with_augmentation_too() -> None:
    pixels = torch.randint(256, (61, 83, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    transform = ImageTransform((24, 24), PLAIN, OFFICIAL_CLIP)
    found = transform(png(pixels), np.random.default_rng(0))
    resized = Image.fromarray(pixels.numpy()).resize((24, 24), Image.Resampling.BICUBIC)
    wanted = (np.asarray(resized) / 255 - OFFICIAL_CLIP.mean) / OFFICIAL_CLIP.std
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), wanted, atol=1e-5)
    other = replace(transform, preprocess=replace(OFFICIAL_CLIP, resampling="torch"))
    assert not torch.equal(other(png(pixels), np.random.default_rng(0)), found)


def test_images_of_the_right_size_are_unchanged() -> None:
    pixels = torch.randint(256, (40, 40, 3), dtype=torch.uint8)
    for preprocess in (Preprocess(), OFFICIAL_CLIP, OFFICIAL_BLIP, EIGHTS):
        image = pixels.permute(2, 0, 1)
        assert torch.equal(preprocess.resize(image, (40, 40)), image)
        assert torch.equal(resize(image, (40, 40), preprocess.resampling), image)


@pytest.mark.parametrize("mode", ["crop", "huggingface"])
def test_crop_modes_need_square_sizes(mode: str) -> None:
    with pytest.raises(ValueError, match=rf"image size is 40 x 48, but resize_mode '{mode}' gives squares"):
        ImageTransform((40, 48), preprocess=Preprocess(resize_mode=mode))  # pyright: ignore[reportArgumentType] - one of the three
    assert ImageTransform((40, 48)).size == (40, 48)


def test_too_narrow_images_are_refused() -> None:
    line = torch.zeros(3, 2, 4000, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"4000 x 2 pixels become 448 x 0 .* multiples of 32"):
        HUGGING_FACE.resize(line, (288, 288))
    with pytest.raises(ValueError, match=r"4000 x 2 pixels become 576000 x 288 .* 64,000,000 pixels allowed"):
        OFFICIAL_CLIP.resize(line, (288, 288))
    assert OFFICIAL_BLIP.resize(line, (288, 288)).shape == (3, 288, 288)


@pytest.mark.parametrize(("fields", "said"), [({"std": (0.5, 0, 0.5)}, "std is"), ({"divisor": 0}, "divisor is 0")])
def test_invalid_preprocessing_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Preprocess(**fields)  # pyright: ignore[reportArgumentType] - the wrong values are the point


def test_preprocessing_survives_json_and_pickle() -> None:
    data = Data(image_size=(40, 40), preprocess=OFFICIAL_CLIP, augment=None)
    assert data.image_transform == ImageTransform((40, 40), None, OFFICIAL_CLIP)
    assert from_json(json.loads(json.dumps(to_json(data)))) == data
    assert pickle.loads(pickle.dumps(data.image_transform)) == data.image_transform


def test_preprocess_and_augment_are_flags() -> None:
    parsed = tyro.cli(
        Data, args=["--preprocess.resize-mode", "crop", "--preprocess.mean", ".1", ".2", ".3", "--augment.flip", "0.25"]
    )
    assert parsed.preprocess == Preprocess("crop", mean=(0.1, 0.2, 0.3)) and parsed.augment == Augment(flip=0.25)
    without = tyro.cli(Data, default=Data(augment=None), args=["--preprocess.resize-mode", "crop"])
    assert without.augment is None and without.preprocess.resize_mode == "crop"


@pytest.mark.parametrize("shape", [(80, 97), (97, 80), (64, 64)])
def test_crop_fraction(shape: tuple[int, int]) -> None:
    """BEiT's evaluation crops 224 of 256 pixels; here 42 of 48."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    shorter = min(shape)
    resized = Image.fromarray(pixels).resize(
        (int(48 * shape[1] / shorter), int(48 * shape[0] / shorter)), Image.Resampling.BICUBIC
    )
    left, top = round((resized.width - 42) / 2), round((resized.height - 42) / 2)
    wanted = np.asarray(resized.crop((left, top, left + 42, top + 42)))
    found = Preprocess("crop", "pillow", crop_fraction=0.875).resize(
        torch.from_numpy(pixels).permute(2, 0, 1), (42, 42)
    )
    assert np.array_equal(found.permute(1, 2, 0).numpy(), wanted)


def test_crop_fraction_needs_the_crop_mode() -> None:
    with pytest.raises(ValueError, match=r"crop_fraction is 0.5 with resize_mode 'squash'"):
        Preprocess(crop_fraction=0.5)
    with pytest.raises(ValueError, match=r"crop_fraction is 0"):
        Preprocess("crop", crop_fraction=0.0)
