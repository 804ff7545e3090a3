"""Pictures: from the bytes of a file to a normalised tensor, with or without augmentation.

Pillow decodes, torch resizes: its antialiased bicubic on 8-bit channels-last memory is several times as quick as
Pillow's and within one grey level of it for pictures that shrink, two for those that grow.
"""

from __future__ import annotations

import io
import math
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dualfuse.data.randaugment import rand_augment

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64_000_000  # 192 MB as RGB; below the limit at which Pillow itself starts to warn
CROP_TRIES = 10
GREY = (0.299, 0.587, 0.114)  # ITU-R 601-2 luma, as Pillow's mode "L"


@dataclass(frozen=True)
class Augment:
    """How training pictures are varied; the default is VLMo's released recipe."""

    crop: tuple[float, float] = (0.5, 1.0)
    """Least and greatest share of the area kept by the random resized crop; 1 1 always keeps the whole picture."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width / height of that crop before it is resized to the square."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    rand_augment: bool = True
    """Whether to apply RandAugment: two random changes of tone or geometry, each with probability 0.5."""
    colour: float = 0.0
    """Strength (0 to 1) of random brightness, contrast and saturation; 0 leaves colours as they are."""

    def __post_init__(self) -> None:
        """Refuses ranges that no picture can satisfy."""
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop is {self.crop}; give two shares of the area, 0 < least <= greatest <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect is {self.aspect}; give two values of width / height, 0 < least <= greatest")
        if not (0 <= self.flip <= 1 and 0 <= self.colour <= 1):
            raise ValueError(f"flip is {self.flip} and colour {self.colour}; both must lie between 0 and 1")


@dataclass(frozen=True)
class ImageTransform:
    """Turns the bytes of a picture into what a model reads.

    ``size`` is (height, width) in pixels. Without ``augment`` the picture is resized to it whatever its aspect
    ratio, as VLMo does for evaluation; ``mean`` and ``std`` are per channel, of values between 0 and 1.
    """

    size: tuple[int, int]
    augment: Augment | None = None
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __call__(self, data: bytes, rng: np.random.Generator) -> Tensor:
        """Gives you the picture as float32 (3, H, W); ``rng`` is drawn from only when there is ``augment``.

        Raises ValueError, with the reason, for bytes that are no usable picture.
        """
        image = decode(data)
        image = resize(image, self.size) if self.augment is None else vary(image, self.size, self.augment, rng)
        scale = torch.tensor([1 / (255 * s) for s in self.std]).view(3, 1, 1)
        shift = torch.tensor([m / s for m, s in zip(self.mean, self.std, strict=True)]).view(3, 1, 1)
        return image.to(torch.float32, memory_format=torch.contiguous_format).mul_(scale).sub_(shift)


def decode(data: bytes) -> Tensor:
    """Gives you the picture in ``data`` as uint8 RGB (3, H, W), upright and on white where it was transparent.

    The first frame of an animation is taken. Raises ValueError for anything else than a whole JPEG, PNG, WebP, GIF,
    BMP or TIFF file of at most ``MAX_PIXELS`` pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels, more than the {MAX_PIXELS:,} allowed")
            picture.load()
            with suppress(Exception):  # broken EXIF says nothing against the pixels
                ImageOps.exif_transpose(picture, in_place=True)
            pixels = torch.from_numpy(np.array(to_rgb(picture)))
    except UnidentifiedImageError:
        raise ValueError(f"{len(data):,} bytes are no picture in one of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's parsers let out whatever a hostile file makes them raise
        raise ValueError(f"picture of {len(data):,} bytes cannot be decoded: {error}") from error
    return pixels.permute(2, 0, 1)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Gives you the picture in mode RGB: transparency on white, 16-bit grey scaled down to 8 bits."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise ValueError(f"mode {picture.mode} (32 bits a pixel) has no fixed white; save it with 8 or 16 bits")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Gives you ``image`` (3, H, W) uint8 at ``size`` (height, width): bicubic, antialiased, aspect not kept."""
    if tuple(image.shape[1:]) == tuple(size):
        return image
    batch = image[None].contiguous(memory_format=torch.channels_last)  # the quick path; no copy after decode
    return F.interpolate(batch, size=size, mode="bicubic", antialias=True)[0]


def vary(image: Tensor, size: tuple[int, int], augment: Augment, rng: np.random.Generator) -> Tensor:
    """Gives you a random variant (3, *size) uint8 of ``image``; draws for crop, flip, colour, RandAugment in turn."""
    top, left, height, width = random_box(image.shape[1:], augment, rng)
    image = resize(image[:, top : top + height, left : left + width], size)
    if rng.random() < augment.flip:
        image = image.flip(2)
    if augment.colour > 0:
        image = jitter(image, augment.colour, rng)
    if augment.rand_augment:
        image = rand_augment(image, rng)
    return image


def random_box(shape: tuple[int, ...], augment: Augment, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Gives you (top, left, height, width) of a random resized crop by torchvision's rule.

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
    """Gives you ``image`` (3, H, W) uint8 with brightness, contrast and saturation each times 1 ± ``strength``."""
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
    """Gives you uint8 (H, W, 3) to look at, from a normalised ``image`` (3, H, W)."""
    pixels = image.detach().float().cpu() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
