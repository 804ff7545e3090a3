"""Two views of one crop: what a model sees, and what its visual tokens are made of (BEiT, section 2.1).

Crop, colours and flip are those of both. The official code changed colours before it cropped; here the crop comes
first, so that only its pixels are worked on, and contrast refers to its own mean grey.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualfuse.data.image.resize import resize
from dualfuse.data.image.transform import Augment, ImageTransform, decode, jitter, random_box, random_changes


def two_views(
    data: bytes, transform: ImageTransform, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return an image (3, H, W) as ``transform`` has it, and its second view (3, *size) as uint8, by Lanczos.

    Without augmentation both are the whole image, by the fit of the transform's looks. Raises DualfuseError for bytes
    that are no usable image.
    """
    preprocess, image = transform.preprocess, decode(data)
    if transform.augment is None:
        return preprocess.normalize(preprocess.resize(image, transform.size)), preprocess.resize(image, size)
    crop = varied(image, transform.augment, rng)
    return preprocess.normalize(resize(crop, transform.size, preprocess.resampling)), lanczos(crop, size)


def one_view(data: bytes, transform: ImageTransform, rng: np.random.Generator) -> Tensor:
    """Return the second view alone, (3, *size of ``transform``) as uint8; DualfuseError as :func:`two_views`."""
    image = decode(data)
    if transform.augment is None:
        return transform.preprocess.resize(image, transform.size)
    return lanczos(varied(image, transform.augment, rng), transform.size)


def varied(image: Tensor, augment: Augment, rng: np.random.Generator) -> Tensor:
    """Return a random crop of ``image`` (3, H, W) uint8 at its own size; crop, flip, colours are drawn in turn."""
    top, left, height, width = random_box(image.shape[1:], augment, rng)
    image = image[:, top : top + height, left : left + width]
    if rng.random() < augment.flip:
        image = image.flip(2)
    if augment.color_jitter > 0:
        image = jitter(image, augment.color_jitter, rng)
    return random_changes(image, augment, rng)


def lanczos(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``image`` (3, H, W) uint8 at ``size`` (height, width) by Pillow's Lanczos filter."""
    pil_image = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    pixels = np.array(pil_image.resize((size[1], size[0]), Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
