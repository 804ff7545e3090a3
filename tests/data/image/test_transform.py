"""Images: decoding what people really have, resizing as Pillow does, augmenting from the generator only."""

from __future__ import annotations

import io
import math
import pickle
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from dualfuse.data.image.decode import decode, decoding, reserve, without_large_notes
from dualfuse.data.image.image_file import Header, header
from dualfuse.data.image.resize import MAX_PIXELS, resize
from dualfuse.data.image.transform import (
    Augment,
    ImageTransform,
    Preprocess,
    augment_image,
    jitter,
    random_box,
    to_pixels,
)

NOTHING = Augment(crop=(1, 1), flip=0, rand_augment=False)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [128 + 120 * np.sin(x / (9 + c)) * np.cos(y / (7 - c)) for c in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def decoded(data: bytes) -> np.ndarray:
    """(H, W, 3)"""
    image = decode(data)
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


def test_resize_last_augments_the_whole_image_and_resizes_as_in_evaluation() -> None:
    """RandAugment of the whole image, then the preprocessing; without it, the evaluation's image, flipped or not."""
    data, size = encoded(Image.fromarray(smooth(40, 90))), (16, 16)
    preprocess = Preprocess("crop", "pillow")
    last = ImageTransform(size, Augment(crop=(1, 1), flip=0.5, order="resize_last"), preprocess)
    image, rng = decode(data), np.random.default_rng(3)
    varied = augment_image(image, Augment(crop=(1, 1), flip=0.5), rng)
    assert varied.shape == image.shape
    expected = preprocess.normalize(preprocess.resize(varied, size))
    assert torch.equal(last(data, np.random.default_rng(3)), expected)
    with pytest.raises(ValueError, match=r"crop is \(0.5, 1.0\), but order 'resize_last' has no random crop"):
        Augment(order="resize_last")


def test_lossless_formats_keep_their_pixels() -> None:
    pixels = noise(5, 7)
    for kind in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(decoded(encoded(Image.fromarray(pixels), kind)), pixels)
    webp = encoded(Image.fromarray(pixels), "WEBP", lossless=True)
    np.testing.assert_array_equal(decoded(webp), pixels)


def test_gray_and_bilevel_become_rgb() -> None:
    grey = noise(5, 7, channels=1)
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(grey))), np.stack([grey] * 3, axis=-1))
    bits = grey > 100
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(bits))), np.stack([bits * 255] * 3, axis=-1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_not_clipped(kind: str) -> None:
    levels = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    assert decoded(encoded(Image.fromarray(levels), kind))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_cmyk_jpeg_keeps_its_colors() -> None:
    for colour, cmyk in {
        (255, 255, 255): (0, 0, 0, 0),
        (0, 255, 255): (255, 0, 0, 0),
        (0, 0, 0): (0, 0, 0, 255),
    }.items():
        data = encoded(Image.new("CMYK", (16, 16), cmyk), "JPEG", quality=95)
        assert np.abs(decoded(data).astype(int) - colour).max() <= 3


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="mode F"):
        decode(encoded(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"))


def test_transparency_is_composed_on_white() -> None:
    pixels = noise(6, 6, channels=4)
    share = pixels[..., 3:] / 255
    expected = pixels[..., :3] * share + 255 * (1 - share)
    assert np.abs(decoded(encoded(Image.fromarray(pixels))) - expected).max() <= 1

    grey = noise(6, 6, channels=2)
    share = grey[..., 1:] / 255
    assert (
        np.abs(decoded(encoded(Image.fromarray(grey, "LA"))) - (grey[..., :1] * share + 255 * (1 - share))).max() <= 1
    )


def test_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    for kind in ("PNG", "GIF"):
        data = encoded(image, kind, transparency=1)
        assert decoded(data).tolist() == [[[10, 20, 30], [255, 255, 255]]]
        assert decoded(encoded(image, kind)).tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decoded(data) == (255, 0, 0)).all()


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    pixels = smooth(24, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    found = decoded(encoded(Image.fromarray(pixels), kind, exif=exif, **options))
    expected = TURNS[orientation](pixels)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (4 if kind == "JPEG" else 0)


def test_broken_exif_data_is_ignored() -> None:
    pixels = noise(5, 7)
    for exif in (b"Exif\x00\x00rubbish, and more rubbish", b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12"):
        np.testing.assert_array_equal(decoded(encoded(Image.fromarray(pixels), "PNG", exif=exif)), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused_at_any_length(kind: str) -> None:
    data = encoded(Image.fromarray(noise(40, 40)), kind)
    for share in (0, 0.01, 0.1, 0.5, 0.9):
        with pytest.raises(ValueError, match="bytes"):
            decode(data[: int(share * len(data))])


def test_damaged_files_give_an_image_or_a_value_error() -> None:
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        data = np.frombuffer(encoded(Image.fromarray(noise(24, 24)), kind), np.uint8)
        for _ in range(40):
            damaged = data.copy()
            damaged[rng.integers(min(len(data), 200), size=6)] = rng.integers(256, size=6)
            try:
                image = decode(damaged.tobytes())
            except ValueError:
                continue
            assert image.shape[0] == 3 and image.dtype == torch.uint8


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few dozen bytes that says it holds ``width`` x ``height`` pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [math.isqrt(MAX_PIXELS) + 1, 10_000, 60_000])
def test_too_large_images_are_refused_before_decoding(side: int) -> None:
    with pytest.raises(ValueError, match="pixels"):
        decode(png_that_claims(side, side))


def with_chunks(png: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Insert chunks after the header of a PNG."""
    made = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return png[:33] + b"".join(made) + png[33:]


def test_large_notes_of_a_png_do_not_matter() -> None:
    """Pillow refuses texts and profiles above 1 MB, as image generators write them."""
    image = Image.fromarray(noise(20, 30))
    png, packed = encoded(image, "PNG"), zlib.compress(b"x" * 3_000_000)
    notes = (
        (b"zTXt", b"workflow\0\0" + packed),
        (b"iTXt", b"workflow\0\1\0en\0w\0" + packed),
        (b"iCCP", b"profile\0\0" + packed),
    )
    for chunks in (*((note,) for note in notes), notes, ((b"tEXt", b"a\0" + b"x" * 1_000_000),) * 70):
        data = with_chunks(png, *chunks)
        assert torch.equal(decode(data), decode(png)) and header(data) == Header(30, 20, 1)
    small = with_chunks(png, (b"zTXt", b"a\0\0" + zlib.compress(b"b")), (b"iCCP", b"a\0\0" + zlib.compress(b"b")))
    assert without_large_notes(small) == small
    exif = Image.Exif()
    exif[0x0112] = 6  # a rotation, beside a large note
    rotated = with_chunks(encoded(image, "PNG", exif=exif.tobytes()), *notes)
    assert decode(rotated).shape == (3, 30, 20)


def test_only_animations_have_frames() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for kind, count in (("GIF", 2), ("WEBP", 2), ("PNG", 2), ("MPO", 1)):
        assert header(encoded(frames[0], kind, save_all=True, append_images=frames[1:])).frames == count, kind


def test_strips_do_not_change_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(noise(37, 23))
    alpha = Image.fromarray(noise(37, 23)[..., 0])
    transparent = image.copy()
    transparent.putalpha(alpha)
    palette = image.quantize(16)
    files = [
        *(encoded(image.convert(mode), kind) for mode, kind in (("RGB", "PNG"), ("L", "PNG"), ("CMYK", "JPEG"))),
        *(encoded(each, "PNG") for each in (transparent, palette, alpha.convert("LA"), alpha.convert("I;16"))),
        encoded(palette, "PNG", transparency=3),
        encoded(palette, "GIF", transparency=3),
    ]
    expected = [decode(data) for data in files]
    monkeypatch.setattr("dualfuse.data.image.decode.STRIP", 23 * 5)
    assert all(torch.equal(decode(data), pixels) for data, pixels in zip(files, expected, strict=True))


def test_decoded_pixels_are_bounded_over_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualfuse.data.image.decode.MAX_DECODED", 1000)
    running: list[int] = []
    most: list[int] = []

    @decoding()
    def hold(pixels: int) -> None:
        reserve(pixels, 1)
        running.append(pixels)
        most.append(sum(running))
        time.sleep(0.002)
        running.remove(pixels)

    sizes = [10, 999, 400, 600, 5000, 1, 300, 300, 300, 300] * 3  # 5000 alone exceeds the limit, and is decoded alone
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, sizes))
    assert max(most) == 5000 and max(each for each in most if each < 5000) <= 1000


def test_threads_that_hold_an_image_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualfuse.data.image.decode.MAX_DECODED", 1000)
    barrier = threading.Barrier(2, timeout=10)

    @decoding()
    def two_images(pixels: int) -> None:
        reserve(pixels, 1)
        barrier.wait()
        with decoding():
            reserve(pixels, 1)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(two_images, (500, 500)))
    with decoding():
        reserve(1000, 1)  # all is released


def test_other_formats_are_named_in_the_refusal() -> None:
    for data in (b"", b"hello", encoded(Image.new("RGB", (2, 2)), "PPM"), encoded(Image.new("RGB", (2, 2)), "ICO")):
        with pytest.raises(ValueError, match="JPEG, PNG, WEBP, GIF, BMP, TIFF"):
            decode(data)


@pytest.mark.parametrize(
    ("size", "levels"), [((24, 24), 1), ((60, 80), 1), ((17, 83), 1), ((61, 1), 1), ((64, 96), 2), ((224, 224), 2)]
)
def test_resize_is_pillows_bicubic(size: tuple[int, int], levels: int) -> None:
    """Even of noise. The two differ by more only on noise that grows one way and shrinks the other."""
    for pixels in (noise(61, 83), smooth(61, 83), noise(61, 83) // 128 * 255):
        expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))
        found = resize(torch.from_numpy(pixels).permute(2, 0, 1), size)
        assert found.dtype == torch.uint8 and found.shape == (3, *size)
        difference = np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected)
        assert difference.max() <= levels and difference.mean() < 0.02


def test_without_augmentation_nothing_is_drawn() -> None:
    pixels = noise(30, 50)
    rng = np.random.default_rng(0)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    found = ImageTransform((16, 16), preprocess=Preprocess(mean=mean, std=std))(encoded(Image.fromarray(pixels)), rng)
    small = resize(torch.from_numpy(pixels).permute(2, 0, 1), (16, 16)).permute(1, 2, 0).numpy()
    expected = ((small / 255 - mean) / std).transpose(2, 0, 1)
    assert found.dtype == torch.float32 and found.is_contiguous()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state
    np.testing.assert_array_equal(to_pixels(found, mean, std), small)


def test_augmentation_depends_on_the_generator_only() -> None:
    data = encoded(Image.fromarray(smooth(40, 60)), "JPEG")
    transform = ImageTransform((24, 32), Augment(color_jitter=0.4))
    again = pickle.loads(pickle.dumps(transform))
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        np.random.seed(seed)
        first = transform(data, np.random.default_rng(seed))
        assert first.shape == (3, 24, 32) and torch.isfinite(first).all()
        torch.manual_seed(99)
        torch.testing.assert_close(again(data, np.random.default_rng(seed)), first, rtol=0, atol=0)
        seen.add(first.numpy().tobytes())
    assert len(seen) == 20


def test_augmentation_without_changes_equals_resizing() -> None:
    data = encoded(Image.fromarray(noise(40, 10)))
    plain = ImageTransform((16, 16))(data, np.random.default_rng(0))
    torch.testing.assert_close(ImageTransform((16, 16), NOTHING)(data, np.random.default_rng(0)), plain)


def test_rand_augment_can_be_switched_off() -> None:
    data = encoded(Image.fromarray(smooth(24, 24)))
    plain = ImageTransform((24, 24))(data, np.random.default_rng(0))
    transform = ImageTransform((24, 24), Augment(crop=(1, 1), flip=0))
    changed = [not torch.equal(transform(data, np.random.default_rng(seed)), plain) for seed in range(60)]
    assert 0.5 < np.mean(changed) < 0.85  # 1 - (1/2 + 1/20)^2 = 0.70, identity being one of the ten


def test_flip_probability() -> None:
    data = encoded(Image.fromarray(noise(8, 8)))
    plain = ImageTransform((8, 8))(data, np.random.default_rng(0))
    assert plain.is_contiguous()  # as decoded it was not, and nothing was resized
    transform = ImageTransform((8, 8), Augment(crop=(1, 1), flip=0.25, rand_augment=False))
    rng = np.random.default_rng(0)
    flips = 0
    for _ in range(800):
        found = transform(data, rng)
        flipped = torch.equal(found, plain.flip(2))
        assert flipped or torch.equal(found, plain)
        flips += flipped
    assert flips / 800 == pytest.approx(0.25, abs=0.05)


def test_crop_respects_area_and_aspect() -> None:
    augment, rng = Augment(crop=(0.2, 0.6)), np.random.default_rng(0)
    boxes = np.array([random_box((300, 400), augment, rng) for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 300).all() and (left + width <= 400).all()
    share, aspect = height * width / 120_000, width / height
    assert share.min() == pytest.approx(0.2, abs=0.01) and share.max() == pytest.approx(0.6, abs=0.01)
    assert aspect.min() == pytest.approx(3 / 4, abs=0.01) and aspect.max() == pytest.approx(4 / 3, abs=0.01)
    assert share.mean() == pytest.approx(0.4, abs=0.01)
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.02)
    assert (top + height / 2).mean() == pytest.approx(150, abs=4)  # anywhere, on average in the middle
    _, _, height, width = random_box((300, 400), Augment(crop=(0.2, 0.2), aspect=(2, 2)), rng)
    assert width / height == pytest.approx(2, abs=0.02)


def test_crop_falls_back_to_the_center_of_narrow_images() -> None:
    rng = np.random.default_rng(0)
    wide = random_box((30, 1000), Augment(), rng)
    tall = random_box((1000, 30), Augment(), rng)
    assert wide == (0, 480, 30, 40) and tall == (480, 0, 40, 30)
    assert random_box((1, 1), Augment(), rng) == (0, 0, 1, 1)
    assert random_box((30, 1000), NOTHING, rng) == (0, 0, 30, 1000)


def test_color_jitter_equals_its_three_steps() -> None:
    pixels = smooth(20, 20) // 4 + 90  # away from black and white, where the steps would clip
    brightness, contrast, saturation = np.random.default_rng(3).uniform(0.7, 1.3, size=3)
    luma = np.array([0.299, 0.587, 0.114])
    bright = pixels * brightness
    even = contrast * bright + (1 - contrast) * (bright @ luma).mean()
    vivid = saturation * even + (1 - saturation) * (even @ luma)[..., None]
    found = jitter(torch.from_numpy(pixels).permute(2, 0, 1), 0.3, np.random.default_rng(3))
    assert np.abs(found.permute(1, 2, 0).numpy() - vivid.clip(0, 255)).max() <= 0.51


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"crop": (0, 1)}, "crop"), ({"crop": (0.9, 0.5)}, "crop"), ({"aspect": (2, 1)}, "aspect"), ({"flip": 2}, "flip")],
)
def test_invalid_augmentation_is_refused(fields: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Augment(**fields)  # pyright: ignore[reportArgumentType] - the wrong values are the point
