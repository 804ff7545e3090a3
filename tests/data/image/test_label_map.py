"""Label maps: what is read, what is refused, and that they go through what their images go through."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dualfuse.data.image.joint_crop import IGNORE_LABEL, JointCrop, distort, pad_to_size, resized_shape
from dualfuse.data.image.label_map import decode_labels, encode_labels, resize_labels


def png(pixels: np.ndarray, mode: str = "") -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("most", [1, 150, 255, 256, 3000, 65_535])
def test_labels_survive_encoding(most: int) -> None:
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, most + 1, (9, 7), dtype=np.int32))
    labels[0, 0] = most
    assert torch.equal(decode_labels(encode_labels(labels)), labels)


def test_a_palette_gives_its_indices() -> None:
    """As Pascal VOC comes: the colours are for people."""
    image = Image.fromarray(np.array([[3, 1], [0, 2]], dtype=np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 250, 0, 0, 0, 250, 0, 9, 9, 9])
    file = io.BytesIO()
    image.save(file, "PNG")
    indices = np.array(Image.open(io.BytesIO(file.getvalue())))
    assert decode_labels(file.getvalue()).tolist() == indices.tolist() != [[0, 0], [0, 0]]


def hostile() -> dict[str, bytes]:
    good, grey = png(np.zeros((40, 40), np.uint8)), np.zeros((4, 4, 3), np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(grey).save(jpeg, "JPEG")
    huge = bytearray(good)
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(bytes(huge[12:29])).to_bytes(4, "big")
    return {
        "have colours": png(grey),
        "empty": b"",
        "jpeg": jpeg.getvalue(),
        "cut off": good[:-30],
        "huge": bytes(huge),
        "noise": np.random.default_rng(0).bytes(99),
    }


@pytest.mark.parametrize("kind", hostile())
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_other_files_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"label map"):
        decode_labels(hostile()[kind])


def test_too_large_maps_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualfuse.data.image.decode.MAX_PIXELS", 99)
    with pytest.raises(ValueError, match="10 x 10 pixels, more than the 99 allowed"):
        decode_labels(png(np.zeros((10, 10), np.uint8)))


def test_resizing_takes_the_label_under_the_center() -> None:
    labels = torch.arange(6, dtype=torch.int32).view(2, 3)
    assert resize_labels(labels, (4, 6)).tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2
    assert resize_labels(labels, (2, 1)).tolist() == [[1], [4]]
    wanted = F.interpolate(labels[None, None].float(), (5, 7), mode="nearest-exact")[0, 0]
    assert torch.equal(resize_labels(labels, (5, 7)), wanted.int())


def coloured(seed: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """An image in which grey level 20 c + 10 says class c, in large squares; some of them are of no class."""
    coarse = torch.from_numpy(np.random.default_rng(seed).integers(0, 12, (2, 3), dtype=np.int32))
    labels = resize_labels(coarse, size)
    image = (20 * labels + 10).to(torch.uint8).expand(3, -1, -1).contiguous()
    return image, labels.masked_fill(labels == 11, IGNORE_LABEL)


@pytest.mark.parametrize("seed", range(20))
def test_image_and_labels_are_cropped_together(seed: int) -> None:
    """Five pixels inside a square, where no resampling reaches across its border, the grey level says the class."""
    image, labels = coloured(seed, (60, 90))
    crop = JointCrop(distort=False)
    changed, found = crop(image, labels, (48, 48), "torch", np.random.default_rng(seed))
    assert changed.shape[1:] == found.shape and max(found.shape) <= 48
    low, high = (sign * F.max_pool2d(sign * found[None].float(), 9, 1, 4)[0] for sign in (-1, 1))
    inside = low == high
    said = torch.where(found == IGNORE_LABEL, 20 * 11 + 10, 20 * found + 10)
    assert inside.sum() > 20 and torch.equal(changed[0].int()[inside], said.int()[inside])


def test_flips_and_scales_vary() -> None:
    image, labels = coloured(0, (60, 90))
    crop, rng = JointCrop(distort=False, most=1.0), np.random.default_rng(0)
    shapes = {crop(image, labels, (64, 64), "torch", rng)[1].shape for _ in range(20)}
    assert (64, 64) in shapes and any(min(shape) < 64 for shape in shapes)
    small = torch.arange(64, dtype=torch.int32).view(8, 8)
    once = JointCrop(scale=(1, 1), most=1.0, distort=False)
    seen = {tuple(once(image[:, :8, :8], small, (8, 8), "torch", rng)[1][0].tolist()) for _ in range(20)}
    assert seen == {tuple(range(8)), tuple(reversed(range(8)))}


def test_crops_have_several_classes_if_possible() -> None:
    """One corner of a large plain image has another class: crops come from there, where ten tries find it."""
    labels = torch.zeros(100, 100, dtype=torch.int32)
    labels[:40, :40] = 1
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)

    def shares(most: float) -> list[float]:
        crop, rng = JointCrop(scale=(2, 2), most=most, distort=False), np.random.default_rng(0)
        return [float(crop(image, labels, (50, 50), "torch", rng)[1].float().mean()) for _ in range(100)]

    def mixed(found: list[float]) -> float:
        return float(np.mean([0.25 < share < 0.75 for share in found]))

    assert mixed(shares(0.75)) > 0.7 > 2 * mixed(shares(1.0))


def test_sizes_are_bounded() -> None:
    assert resized_shape((300, 400), 512) == (512, 683)
    assert resized_shape((10, 30_000), 512) == (1, 2048)
    assert resized_shape((3, 3), 512) == (512, 512)
    assert pad_to_size(torch.ones(2, 3), (4, 4), IGNORE_LABEL).tolist() == [[1, 1, 1, -1]] * 2 + [[-1] * 4] * 2


def test_distortion_changes_colors_only() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8))
    rng = np.random.default_rng(1)
    changed = [distort(image, rng) for _ in range(200)]
    assert all(one.dtype == torch.uint8 and one.shape == image.shape for one in changed)
    same = sum(torch.equal(one, image) for one in changed) / 200
    assert 0.02 < same < 0.12  # none of the four: one in sixteen
    grey = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    levels = {int(distort(grey, rng)[0, 0, 0]) for _ in range(300)}
    assert min(levels) < 60 and max(levels) > 150 and min(levels) >= round(0.5 * 68) - 1 and max(levels) <= 198


@pytest.mark.parametrize(
    ("scale", "most", "flip"), [((0.0, 1.0), 0.75, 0.5), ((2.0, 1.0), 0.75, 0.5), ((1, 2), 0, 0.5)]
)
def test_invalid_ranges_are_refused(scale: tuple[float, float], most: float, flip: float) -> None:
    with pytest.raises(ValueError, match=r"give|must be"):
        JointCrop(scale, most, flip)
