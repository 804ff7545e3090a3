from __future__ import annotations

import numpy as np
import pytest
import torch

from dualfuse.data.image.mixup import Mixup
from dualfuse.data.image.random_erasing import erase

IMAGES = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 20, 30)  # each of one value, its number


def test_mixup_interpolates_images() -> None:
    torch.manual_seed(0)
    shares = []
    for _ in range(400):
        mixed, share = Mixup(mixup_alpha=0.8)(IMAGES)
        wanted = torch.tensor([share * n + (1 - share) * (4 - n) for n in range(5)])
        torch.testing.assert_close(mixed, wanted.view(5, 1, 1, 1).expand_as(mixed))
        shares.append(share)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert np.var(shares) == pytest.approx(0.25 / 2.6, rel=0.15)  # of Beta(a, a): 1 / (4 (2 a + 1))


def test_cutmix_returns_the_share_of_kept_pixels() -> None:
    torch.manual_seed(0)
    shares = []
    for _ in range(400):
        mixed, share = Mixup(cutmix_alpha=1.0)(IMAGES)
        other = (mixed[0, 0] == 4).float()
        assert 1 - other.mean().item() == pytest.approx(share)
        assert set(mixed[2].unique().tolist()) == {2.0}
        rows, columns = other.amax(1).sum(), other.amax(0).sum()
        assert rows * columns == other.sum()  # one rectangle
        assert torch.equal((mixed[4, 2] == 0).float(), other)
        shares.append(share)
    assert min(shares) < 0.3 and max(shares) > 0.9
    assert IMAGES[0, 0, 0, 0] == 0  # what was given is left as it was


def test_mixup_and_cutmix_alternate_randomly_and_reproducibly() -> None:
    torch.manual_seed(3)
    first = [Mixup(mixup_alpha=0.8, cutmix_alpha=1.0)(IMAGES) for _ in range(200)]
    torch.manual_seed(3)
    again = [Mixup(mixup_alpha=0.8, cutmix_alpha=1.0)(IMAGES) for _ in range(200)]
    assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(first, again, strict=True))
    whole = [len(mixed[0, 0].unique()) == 1 and share < 1 for mixed, share in first]
    assert 0.4 < np.mean(whole) < 0.65


def test_negative_parameters_are_refused() -> None:
    assert not Mixup().mixes and Mixup(cutmix_alpha=1.0).mixes and Mixup(mixup_alpha=1.0).mixes
    with pytest.raises(ValueError, match="mixup_alpha is -1"):
        Mixup(mixup_alpha=-1)


def test_erasing_fills_one_rectangle_with_noise() -> None:
    rng, image = np.random.default_rng(0), torch.full((3, 60, 40), 9.0)
    areas, aspects, values = [], [], []
    for _ in range(300):
        noise = erase(image, rng) != 9
        rows, columns = (int(noise[0].any(axis).sum()) for axis in (1, 0))
        assert noise.sum() == 3 * rows * columns
        areas.append(rows * columns / 2400)
        aspects.append(rows / columns)
        values.append(erase(image, rng)[0].flatten())
    assert 0.015 < min(areas) < 0.03 and 0.3 < max(areas) < 0.34
    assert min(aspects) < 0.4 and max(aspects) > 2.5
    noise = torch.cat(values)
    noise = noise[noise != 9]
    assert abs(noise.mean().item()) < 0.02 and noise.std().item() == pytest.approx(1, abs=0.02)
    assert (image == 9).all()


def test_small_images_are_not_erased() -> None:
    image = torch.ones(3, 1, 1)
    assert erase(image, np.random.default_rng(0)) is image
