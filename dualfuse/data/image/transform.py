"""Image preprocessing: from the bytes of a file to a normalized tensor, with or without augmentation.

torch resizes, unless ``Preprocess.resampling`` is "pillow".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.image.decode import decode, decoding
from dualfuse.data.image.randaugment import Policy, rand_augment
from dualfuse.data.image.resize import (
    MAX_PIXELS,
    Interpolation,
    Resampling,
    center_crop,
    resize,
    resize_and_crop,
    resize_huggingface,
    resize_shorter,
)
from dualfuse.errors import DualfuseError

CROP_TRIES = 10
GRAY = (0.299, 0.587, 0.114)  # ITU-R 601-2 luma, as Pillow's mode "L"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Augment:
    """Augmentation of training images; the defaults are VLMo's official recipe."""

    crop: tuple[float, float] = (0.5, 1.0)
    """Range of the share of the area that the random resized crop keeps; 1 1: no crop."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of width / height of that crop before it is resized."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    rand_augment: bool = True
    """Apply RandAugment: two random operations on color or geometry, each with probability 0.5."""
    rand_augment_policy: Policy = "vlmo"
    """RandAugment of VLMo, with a fixed magnitude; or timm's stronger rand-m9-mstd0.5-inc1, as in BEiT fine-tuning."""
    color_jitter: float = 0.0
    """Strength (0 to 1) of random brightness, contrast and saturation; 0: none."""
    order: Literal["crop_first", "resize_last"] = "crop_first"
    """crop_first: the random resized crop comes first, as in VLMo and BridgeTower; resize_last: there is none, and the
    whole image is augmented and then resized as in evaluation, as in METER. Needs crop 1 1."""

    def __post_init__(self) -> None:
        """Validate the ranges."""
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise DualfuseError(f"crop is {self.crop}; give two shares of the area, 0 < minimum <= maximum <= 1")
        if self.order == "resize_last" and self.crop != (1, 1):
            raise DualfuseError(f"crop is {self.crop}, but order 'resize_last' has no random crop; give crop 1 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise DualfuseError(f"aspect is {self.aspect}; give two values of width / height, 0 < minimum <= maximum")
        if not (0 <= self.flip <= 1 and 0 <= self.color_jitter <= 1):
            raise DualfuseError(
                f"flip is {self.flip} and color_jitter {self.color_jitter}; both must be between 0 and 1"
            )


@dataclass(frozen=True)
class Preprocess:
    """Resizing and normalization of images."""

    resize_mode: Literal["squash", "crop", "huggingface", "huggingface_clip"] = "squash"
    """Resize mode: squash, or resize the shorter side and center-crop; or as Hugging Face's BridgeTower processor
    does: similar to crop, with sides in multiples of ``divisor`` and black borders around narrow images; or as its CLIP
    processor does: crop, whose corner is rounded down."""
    resampling: Resampling = "torch"
    """Resampling backend: torch is faster, and within a few gray levels of Pillow, with which published models were
    trained."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Channel means, which are subtracted from values between 0 and 1."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Channel standard deviations, by which the result is divided."""
    divisor: int = 32
    """With resize_mode huggingface: sides are multiples of this number."""
    crop_fraction: float = 1.0
    """With resize_mode crop or huggingface_clip: share of the shorter side that the center crop keeps; 0.875: 224 of
    256 pixels."""
    interpolation: Interpolation = "bicubic"
    """Filter of resizing evaluation images; SigLIP 2 was trained with bilinear."""

    def __post_init__(self) -> None:
        """Validate the numbers, and that they fit the resize mode."""
        if min(self.std) <= 0:
            raise DualfuseError(f"std is {self.std}; all three numbers must be above 0")
        crops = self.resize_mode in ("crop", "huggingface_clip")
        if not 0 < self.crop_fraction <= 1 or (self.crop_fraction < 1 and not crops):
            raise DualfuseError(
                f"crop_fraction is {self.crop_fraction} with resize_mode {self.resize_mode!r}; it must be above 0, at "
                "most 1, and 1 unless resize_mode is 'crop'"
            )
        if self.divisor < 1:
            raise DualfuseError(f"divisor is {self.divisor}; it must be 1 or more")

    def resize(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize ``image`` (3, H, W) uint8 to ``size``; raises DualfuseError for a too narrow image."""
        if self.resize_mode == "squash":
            return resize(image, size, self.resampling, self.interpolation)
        shorter = int(size[0] / self.crop_fraction)
        if self.resize_mode == "crop":
            return center_crop(resize_and_crop(image, shorter, self.resampling, self.interpolation), size[0])
        if self.resize_mode == "huggingface_clip":
            return center_crop(resize_shorter(image, shorter, self.resampling, self.interpolation), size[0])
        return center_crop(resize_huggingface(image, size[0], self.divisor, self.resampling), size[0])

    def normalize(self, image: Tensor) -> Tensor:
        """Return ``image`` (3, H, W) uint8 as float32 between 0 and 1, minus ``mean``, divided by ``std``."""
        scale = torch.tensor([1 / (255 * s) for s in self.std], dtype=torch.float32).view(3, 1, 1)
        shift = torch.tensor([m / s for m, s in zip(self.mean, self.std, strict=True)], dtype=torch.float32).view(
            3, 1, 1
        )
        return image.to(torch.float32, memory_format=torch.contiguous_format).mul_(scale).sub_(shift)


OFFICIAL_CLIP = Preprocess("crop", "pillow", CLIP_MEAN, CLIP_STD)
"""BridgeTower's and METER's official code for pre-training, and for evaluation without fine-tuning."""
OFFICIAL_BLIP = Preprocess("squash", "pillow", CLIP_MEAN, CLIP_STD)
"""BridgeTower's official code for evaluation after fine-tuning."""
HUGGING_FACE = Preprocess("huggingface", "pillow", CLIP_MEAN, CLIP_STD)
"""BridgeTower's image processor in transformers, with the same number for size and crop size."""


@dataclass(frozen=True)
class ImageTransform:
    """Transform from the bytes of an image to the input of a model.

    ``size`` is (height, width) in pixels. Without ``augment``, and with ``augment.order`` "resize_last", the image is
    resized by ``preprocess.resize_mode``; otherwise by the random resized crop. Resampling, mean and std of
    ``preprocess`` apply to all.
    """

    size: tuple[int, int]
    augment: Augment | None = None
    preprocess: Preprocess = Preprocess()

    def __post_init__(self) -> None:
        """Validate the size."""
        if min(self.size) < 1 or self.size[0] * self.size[1] > MAX_PIXELS:
            raise DualfuseError(
                f"image size is {self.size[0]} x {self.size[1]}; give 1 to {MAX_PIXELS:,} pixels in total"
            )
        if self.preprocess.resize_mode != "squash" and self.size[0] != self.size[1]:
            raise DualfuseError(
                f"image size is {self.size[0]} x {self.size[1]}, but resize_mode {self.preprocess.resize_mode!r} gives "
                "squares; give the same number twice, or choose resize_mode 'squash'"
            )

    @decoding()
    def __call__(self, data: bytes, rng: np.random.Generator) -> Tensor:
        """Return the image as float32 (3, H, W); ``rng`` is used with ``augment`` only.

        Raises DualfuseError with the reason for an unusable image.
        """
        image = decode(data)
        if self.augment is None:
            return self.preprocess.normalize(self.preprocess.resize(image, self.size))
        if self.augment.order == "resize_last":
            return self.preprocess.normalize(self.preprocess.resize(augment_image(image, self.augment, rng), self.size))
        return self.preprocess.normalize(augment_image(image, self.augment, rng, self.size, self.preprocess.resampling))


def augment_image(
    image: Tensor,
    augment: Augment,
    rng: np.random.Generator,
    size: tuple[int, int] | None = None,
    resampling: Resampling = "torch",
) -> Tensor:
    """Return an augmented ``image`` (3, H, W) uint8; draws for crop, flip, color, RandAugment in turn.

    The crop is resized to ``size`` before its colors change; None: it is not resized.
    """
    top, left, height, width = random_box(image.shape[1:], augment, rng)
    image = image[:, top : top + height, left : left + width]
    if size is not None:
        image = resize(image, size, resampling)
    if rng.random() < augment.flip:
        image = image.flip(2)
    if augment.color_jitter > 0:
        image = jitter(image, augment.color_jitter, rng)
    return rand_augment(image, augment.rand_augment_policy, rng) if augment.rand_augment else image


def random_box(shape: tuple[int, ...], augment: Augment, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random resized crop, by torchvision's algorithm.

    Ten tries at a uniform area and a log-uniform aspect ratio; if none fits, the largest central box of a valid aspect.
    """
    rows, columns = shape
    if augment.crop == (1, 1):
        return 0, 0, rows, columns
    low, high = math.log(augment.aspect[0]), math.log(augment.aspect[1])
    for _ in range(CROP_TRIES):
        area = rows * columns * rng.uniform(*augment.crop)
        aspect = math.exp(rng.uniform(low, high))
        height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < height <= rows and 0 < width <= columns:
            top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
            return top, left, height, width
    height = min(rows, max(1, round(columns / augment.aspect[0])))
    width = min(columns, max(1, round(rows * augment.aspect[1])))
    return (rows - height) // 2, (columns - width) // 2, height, width


def jitter(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Return ``image`` (3, H, W) uint8 with brightness, contrast and saturation each times 1 ± ``strength``."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3).tolist()
    weights = torch.tensor(GRAY, dtype=torch.float32)
    pixels = image.flatten(1).float().mul_(brightness)  # (3, H * W)
    gray = weights @ pixels  # (H * W,)
    mean = gray.mean()
    pixels = torch.lerp(mean, pixels, contrast)
    gray = torch.lerp(mean, gray, contrast)
    pixels = torch.lerp(gray, pixels, saturation)
    return pixels.round_().clamp_(0, 255).to(torch.uint8).view(image.shape)


def to_pixels(image: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> np.ndarray:
    """Undo the normalization of ``image`` (3, H, W); return uint8 (H, W, 3)."""
    pixels = image.detach().float().cpu() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
