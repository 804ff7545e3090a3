"""Two views of one random crop: the model's input, and the input of the visual tokenizer (BEiT, section 2.1).

Both share crop, flip and color jitter. The official code changes colors before it crops; here the crop comes first,
which is faster, and contrast refers to the mean gray of the crop.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dualfuse.data.image.decode import decode, decoding
from dualfuse.data.image.resize import resize
from dualfuse.data.image.transform import ImageTransform, augment_image


@decoding()
def two_views(
    data: bytes, transform: ImageTransform, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return the model's view (3, H, W) by ``transform``, and the tokenizer's view (3, *size), uint8, by Lanczos.

    Without augmentation both are the whole image, resized by the transform's preprocessing. Raises DualfuseError for an
    unusable image.
    """
    preprocess, image = transform.preprocess, decode(data)
    if transform.augment is None:
        return preprocess.normalize(preprocess.resize(image, transform.size)), preprocess.resize(image, size)
    view = augment_image(image, transform.augment, rng)
    if transform.augment.order == "resize_last":
        return preprocess.normalize(preprocess.resize(view, transform.size)), preprocess.resize(view, size)
    return preprocess.normalize(resize(view, transform.size, preprocess.resampling)), lanczos(view, size)


@decoding()
def tokenizer_view(data: bytes, transform: ImageTransform, rng: np.random.Generator) -> Tensor:
    """Return the tokenizer's view only, uint8 at the size of ``transform``; see :func:`two_views`."""
    image = decode(data)
    if transform.augment is None:
        return transform.preprocess.resize(image, transform.size)
    view = augment_image(image, transform.augment, rng)
    if transform.augment.order == "resize_last":
        return transform.preprocess.resize(view, transform.size)
    return lanczos(view, transform.size)


def lanczos(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``image`` (3, H, W) uint8 to ``size`` (height, width) with Pillow's Lanczos filter."""
    pil_image = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    pixels = np.array(pil_image.resize((size[1], size[0]), Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
