"""Two views of one crop."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dualfuse.data.image.decode import decode
from dualfuse.data.image.transform import Augment, ImageTransform, Preprocess, random_box
from dualfuse.data.image.two_views import lanczos, tokenizer_view, two_views


def image() -> bytes:
    """Smooth, so that a resampler hardly matters, and without any symmetry."""
    y, x = np.mgrid[0:96, 0:128]
    pixels = np.stack([2 * x * 0.9, y * 2.2, 60 + 40 * np.sin((x + 2 * y) / 17)], axis=2).clip(0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def seen(image: Tensor) -> Tensor:
    """Return the pixels 0 to 255 of a normalised image."""
    return (image * 0.5 + 0.5) * 255


@pytest.mark.parametrize("seed", range(6))
def test_both_views_show_the_same_crop(seed: int) -> None:
    augment = Augment(crop=(0.2, 1.0), rand_augment=False, color_jitter=0.4)
    transform = ImageTransform((64, 64), augment)
    seen_image, view = two_views(image(), transform, (32, 32), np.random.default_rng(seed))
    assert seen_image.shape == (3, 64, 64) and view.shape == (3, 32, 32) and view.dtype == torch.uint8
    smaller = F.interpolate(seen(seen_image)[None], (32, 32), mode="area")[0]
    inner = (slice(None), slice(2, -2), slice(2, -2))
    assert (smaller - view.float())[inner].abs().mean() < 1.5
    _, other = two_views(image(), transform, (32, 32), np.random.default_rng(seed + 100))
    assert (view.float() - other.float()).abs().mean() > 3


def test_tokenizer_view_is_resized_by_lanczos() -> None:
    augment = Augment(crop=(0.1, 0.6), rand_augment=False, flip=0.0)
    _, view = two_views(image(), ImageTransform((64, 64), augment), (32, 24), np.random.default_rng(5))
    top, left, height, width = random_box((96, 128), augment, np.random.default_rng(5))
    whole = Image.open(io.BytesIO(image())).crop((left, top, left + width, top + height))
    wanted = np.array(whole.resize((24, 32), Image.Resampling.LANCZOS))
    assert np.array_equal(view.permute(1, 2, 0).numpy(), wanted)


def test_tokenizer_view_equals_the_second_of_two() -> None:
    augment = Augment(color_jitter=0.3)
    for seed in range(4):
        _, wanted = two_views(image(), ImageTransform((64, 64), augment), (24, 32), np.random.default_rng(seed))
        got = tokenizer_view(image(), ImageTransform((24, 32), augment), np.random.default_rng(seed))
        assert torch.equal(got, wanted)


def test_without_augmentation_views_show_the_whole_image() -> None:
    transform = ImageTransform((48, 64), None, Preprocess(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)))
    seen_image, view = two_views(image(), transform, (24, 32), np.random.default_rng(0))
    assert torch.equal(seen_image, transform(image(), np.random.default_rng(0)))
    assert (view.float() - lanczos(decode(image()), (24, 32)).float()).abs().max() <= 4
    assert torch.equal(view, tokenizer_view(image(), ImageTransform((24, 32)), np.random.default_rng(0)))


def test_other_files_are_refused() -> None:
    with pytest.raises(ValueError):
        two_views(b"no image", ImageTransform((8, 8)), (4, 4), np.random.default_rng(0))
