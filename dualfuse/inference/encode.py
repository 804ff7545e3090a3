"""Embed the images of a collection; those that cannot be read are reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.parallel_map import parallel_map
from dualfuse.data.sample import BrokenSample
from dualfuse.errors import DualfuseError
from dualfuse.tasks.base import Task


class ImageCollection(Protocol):
    """Numbered image files with names."""

    @property
    def names(self) -> Sequence[str]:
        """The names of the images, by number."""
        ...

    def read(self, number: int, /) -> bytes:
        """Return an image file; raises ``OSError`` or ``ValueError`` if it cannot be read."""
        ...


@dataclass(frozen=True)
class SkippedImage:
    """The name of an image that cannot be read, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class EmbeddedImages:
    """A batch of images: B numbers and embeddings (B, D), and the skipped images between them."""

    numbers: tuple[int, ...]
    embeddings: Tensor
    skipped: tuple[SkippedImage, ...]


def embed(
    task: Task,
    transform: ImageTransform,
    collection: ImageCollection,
    numbers: Sequence[int],
    *,
    batch: int,
    workers: int,
) -> Iterator[EmbeddedImages]:
    """Yield the embeddings of the images ``numbers``, ``batch`` images at a time.

    ``workers`` threads read the files; 0: one per processor. Raises DualfuseError for embeddings that are not finite.
    """
    for chunk in pixels(transform, collection, numbers, batch=batch, workers=workers):
        readable = [(number, image) for number, image in chunk if isinstance(image, Tensor)]
        skipped = tuple(image for _, image in chunk if isinstance(image, SkippedImage))
        images = [image for _, image in readable]
        embeddings = embed_images(task, torch.stack(images)) if images else torch.empty(0, 0, dtype=torch.float32)
        yield EmbeddedImages(tuple(number for number, _ in readable), embeddings, skipped)


def pixels(
    transform: ImageTransform, collection: ImageCollection, numbers: Sequence[int], *, batch: int, workers: int
) -> Iterator[list[tuple[int, Tensor | SkippedImage]]]:
    """Yield the images ``numbers`` as tensors (3, H, W), each with its number, ``batch`` at a time."""
    images = parallel_map(partial(_read, transform, collection), numbers, workers)
    while chunk := list(islice(images, batch)):
        yield chunk


@torch.inference_mode()
def embed_images(task: Task, images: Tensor) -> Tensor:
    """Return unit embeddings (B, D), float32 on the CPU, of images (B, 3, H, W)."""
    embeddings = task.image_features(task.model.embed_image(images.to(task.device))).float().cpu()
    if not embeddings.isfinite().all():
        raise DualfuseError("the embeddings of the model are not finite (NaN or infinite); did its training diverge?")
    return embeddings


def _read(transform: ImageTransform, collection: ImageCollection, number: int) -> Tensor | SkippedImage:
    try:
        return transform(collection.read(number), np.random.default_rng(0))  # nothing is drawn without augmentation
    except BrokenSample as error:
        return SkippedImage(collection.names[number], error.reason)
    except OSError as error:
        return SkippedImage(collection.names[number], error.strerror or str(error))
    except ValueError as error:
        return SkippedImage(collection.names[number], str(error))
