"""Images: from the bytes of a file to a normalised tensor, with or without augmentation.

Pillow decodes; torch resizes unless the looks ask for Pillow.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dualfuse.data.image import randaugment, randaugment_timm
from dualfuse.data.image.resize import MAX_PIXELS, Resampling, centre, crop, hugging_face, resize
from dualfuse.errors import DualfuseError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
CROP_TRIES = 10
GREY = (0.299, 0.587, 0.114)  # ITU-R 601-2 luma, as Pillow's mode "L"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Augment:
    """How training images are varied; the default is VLMo's official recipe."""

    crop: tuple[float, float] = (0.5, 1.0)
    """Least and greatest share of the area kept by the random resized crop; 1 1 always keeps the whole image."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width / height of that crop before it is resized to the square."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    rand_augment: bool = True
    """Whether to apply RandAugment: two random changes of tone or geometry, each with probability 0.5."""
    rand_augment_policy: Literal["vlmo", "timm"] = "vlmo"
    """Whose: VLMo's, of one strength; or timm's rand-m9-mstd0.5-inc1, stronger, with which BEiT is fine-tuned."""
    color_jitter: float = 0.0
    """Strength (0 to 1) of random brightness, contrast and saturation; 0 leaves colours as they are."""

    def __post_init__(self) -> None:
        """Refuse ranges that no image can satisfy."""
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise DualfuseError(f"crop is {self.crop}; give two shares of the area, 0 < least <= greatest <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise DualfuseError(f"aspect is {self.aspect}; give two values of width / height, 0 < least <= greatest")
        if not (0 <= self.flip <= 1 and 0 <= self.color_jitter <= 1):
            raise DualfuseError(f"flip is {self.flip} and colour {self.color_jitter}; both must lie between 0 and 1")


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the model's square when nothing is varied, and how its values are normalised."""

    resize_mode: Literal["squash", "crop", "huggingface"] = "squash"
    """How shapes meet: the aspect is lost; or the shorter side fits and the middle is cut out; or as Hugging Face's
    BridgeTower processor does it: about like crop, in multiples of a divisor, with black around narrow images."""
    resampling: Resampling = "torch"
    """Who resizes: torch is quick, and within a few grey levels of Pillow, which is what others used."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from each channel, of values between 0 and 1."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """What each channel is then divided by."""
    divisor: int = 32
    """Sides are resized to multiples of it; of fit huggingface only."""
    crop_fraction: float = 1.0
    """How much of the shorter side is cut out, of fit crop only; 0.875: of 256 pixels the middle 224."""

    def __post_init__(self) -> None:
        """Refuse what nothing can be divided by."""
        if min(self.std) <= 0:
            raise DualfuseError(f"std is {self.std}; channels are divided by it, so give three numbers above 0")
        if not 0 < self.crop_fraction <= 1 or (self.crop_fraction < 1 and self.resize_mode != "crop"):
            raise DualfuseError(
                f"kept is {self.crop_fraction} with fit {self.resize_mode}; give a share up to 1, and below 1 with crop alone"
            )
        if self.divisor < 1:
            raise DualfuseError(f"divisor is {self.divisor}; sides are multiples of it, so give a whole number from 1")

    def resize(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``image`` (3, H, W) uint8 at ``size``; DualfuseError for one too narrow to be fitted."""
        if self.resize_mode == "squash":
            return resize(image, size, self.resampling)
        if self.resize_mode == "crop":
            return centre(crop(image, int(size[0] / self.crop_fraction), self.resampling), size[0])
        return centre(hugging_face(image, size[0], self.divisor, self.resampling), size[0])

    def normalize(self, image: Tensor) -> Tensor:
        """Return ``image`` (3, H, W) uint8 as float32, minus ``mean`` and divided by ``std``."""
        scale = torch.tensor([1 / (255 * s) for s in self.std]).view(3, 1, 1)
        shift = torch.tensor([m / s for m, s in zip(self.mean, self.std, strict=True)]).view(3, 1, 1)
        return image.to(torch.float32, memory_format=torch.contiguous_format).mul_(scale).sub_(shift)


OFFICIAL_CLIP = Preprocess("crop", "pillow", CLIP_MEAN, CLIP_STD)
"""BridgeTower's and METER's official code: pre-training, and evaluation of what was not pre-trained on pairs."""
OFFICIAL_BLIP = Preprocess("squash", "pillow", CLIP_MEAN, CLIP_STD)
"""BridgeTower's official code: evaluation after fine-tuning."""
HUGGING_FACE = Preprocess("huggingface", "pillow", CLIP_MEAN, CLIP_STD)
"""BridgeTower's image processor in transformers, with the same number for size and crop size."""


@dataclass(frozen=True)
class ImageTransform:
    """Turns the bytes of an image into what a model reads.

    ``size`` is (height, width) in pixels. Without ``augment`` the image is brought to it by the fit of ``looks``;
    with it, by the random resized crop, whatever the fit. Resampling, mean and std of ``looks`` hold for both.
    """

    size: tuple[int, int]
    augment: Augment | None = None
    preprocess: Preprocess = Preprocess()

    def __post_init__(self) -> None:
        """Refuse a size that the fit cannot give, or that no image may have."""
        if min(self.size) < 1 or self.size[0] * self.size[1] > MAX_PIXELS:
            raise DualfuseError(
                f"image size is {self.size[0]} x {self.size[1]}; give 1 to {MAX_PIXELS:,} pixels in all"
            )
        if self.preprocess.resize_mode != "squash" and self.size[0] != self.size[1]:
            raise DualfuseError(
                f"image size is {self.size[0]} x {self.size[1]}, but the fit {self.preprocess.resize_mode!r} gives squares; "
                "give the same number twice, or choose the fit 'squash'"
            )

    def __call__(self, data: bytes, rng: np.random.Generator) -> Tensor:
        """Return the image as float32 (3, H, W); ``rng`` is drawn from only when there is ``augment``.

        Raises DualfuseError, with the reason, for bytes that are no usable image.
        """
        image = decode(data)
        if self.augment is None:
            return self.preprocess.normalize(self.preprocess.resize(image, self.size))
        return self.preprocess.normalize(augment_image(image, self.size, self.augment, rng, self.preprocess.resampling))


def decode(data: bytes) -> Tensor:
    """Return the image in ``data`` as uint8 RGB (3, H, W), upright and on white where it was transparent.

    The first frame of an animation is taken. Raises DualfuseError for anything else than a whole JPEG, PNG, WebP, GIF,
    BMP or TIFF file of at most ``MAX_PIXELS`` pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DualfuseError(f"{image.width} x {image.height} pixels, more than the {MAX_PIXELS:,} allowed")
            image.load()
            with suppress(Exception):  # broken EXIF says nothing against the pixels
                ImageOps.exif_transpose(image, in_place=True)
            pixels = torch.from_numpy(np.array(to_rgb(image)))
    except UnidentifiedImageError:
        raise DualfuseError(f"{len(data):,} bytes are no image in one of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's parsers let out whatever a hostile file makes them raise
        raise DualfuseError(f"image of {len(data):,} bytes cannot be decoded: {error}") from error
    return pixels.permute(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB: transparency on white, 16-bit grey scaled down to 8 bits."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DualfuseError(f"mode {image.mode} (32 bits a pixel) has no fixed white; save it with 8 or 16 bits")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def augment_image(
    image: Tensor, size: tuple[int, int], augment: Augment, rng: np.random.Generator, resampling: Resampling
) -> Tensor:
    """Return a random variant (3, *size) uint8 of ``image``; draws for crop, flip, colour, RandAugment in turn."""
    top, left, height, width = random_box(image.shape[1:], augment, rng)
    image = resize(image[:, top : top + height, left : left + width], size, resampling)
    if rng.random() < augment.flip:
        image = image.flip(2)
    if augment.color_jitter > 0:
        image = jitter(image, augment.color_jitter, rng)
    return random_changes(image, augment, rng)


def random_changes(image: Tensor, augment: Augment, rng: np.random.Generator) -> Tensor:
    """Return ``image`` (3, H, W) uint8 after what ``augment`` has of RandAugment."""
    if not augment.rand_augment:
        return image
    return (randaugment if augment.rand_augment_policy == "vlmo" else randaugment_timm).rand_augment(image, rng)


def random_box(shape: tuple[int, ...], augment: Augment, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random resized crop by torchvision's rule.

    Ten tries at an area and a log-uniform aspect ratio; if none fits, the largest central box of an allowed aspect.
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
    weights = torch.tensor(GREY)
    pixels = image.flatten(1).float().mul_(brightness)  # (3, H * W)
    grey = weights @ pixels  # (H * W,)
    mean = grey.mean()
    pixels = torch.lerp(mean, pixels, contrast)
    grey = torch.lerp(mean, grey, contrast)
    pixels = torch.lerp(grey, pixels, saturation)
    return pixels.round_().clamp_(0, 255).to(torch.uint8).view(image.shape)


def to_pixels(image: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> np.ndarray:
    """Return uint8 (H, W, 3) to look at, from a normalised ``image`` (3, H, W)."""
    pixels = image.detach().float().cpu() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def pad_together(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return ``images`` (each (C, H, W)) as one (B, C, most H, most W), and where there is image (B, H, W).

    Zeros fill the right and the bottom, so pad after normalising, as transformers does: with
    ``looks.normalised(resize.hugging_face(...))`` this is its processor without the centre crop.
    """
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    padded = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    mask = torch.zeros(len(images), height, width, dtype=torch.bool)
    for row, is_image, image in zip(padded, mask, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
        is_image[: image.shape[1], : image.shape[2]] = True
    return padded, mask
