"""Two views of one crop: what a model sees, and what its visual tokens are made of (BEiT, section 2.1).

Crop, colours and flip are those of both. The released code changed colours before it cropped; here the crop comes
first, so that only its pixels are worked on, and contrast refers to its own mean grey.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualfuse.data.images import Augment, ImageTransform, decode, jitter, random_box, random_changes
from dualfuse.data.resize import resize


def two_views(
    data: bytes, transform: ImageTransform, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Gives you a picture (3, H, W) as ``transform`` has it, and its second view (3, *size) as uint8, by Lanczos.

    Without augmentation both are the whole picture, by the fit of the transform's looks. Raises ValueError for bytes
    that are no usable picture.
    """
    looks, image = transform.looks, decode(data)
    if transform.augment is None:
        return looks.normalised(looks.fitted(image, transform.size)), looks.fitted(image, size)
    crop = varied(image, transform.augment, rng)
    return looks.normalised(resize(crop, transform.size, looks.resampling)), lanczos(crop, size)


def one_view(data: bytes, transform: ImageTransform, rng: np.random.Generator) -> Tensor:
    """Gives you the second view alone, (3, *size of ``transform``) as uint8; ValueError as :func:`two_views`."""
    image = decode(data)
    if transform.augment is None:
        return transform.looks.fitted(image, transform.size)
    return lanczos(varied(image, transform.augment, rng), transform.size)


def varied(image: Tensor, augment: Augment, rng: np.random.Generator) -> Tensor:
    """Gives you a random crop of ``image`` (3, H, W) uint8 at its own size; crop, flip, colours are drawn in turn."""
    top, left, height, width = random_box(image.shape[1:], augment, rng)
    image = image[:, top : top + height, left : left + width]
    if rng.random() < augment.flip:
        image = image.flip(2)
    if augment.colour > 0:
        image = jitter(image, augment.colour, rng)
    return random_changes(image, augment, rng)


def lanczos(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Gives you ``image`` (3, H, W) uint8 at ``size`` (height, width) by Pillow's Lanczos filter."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    pixels = np.array(picture.resize((size[1], size[0]), Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
