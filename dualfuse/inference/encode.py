"""Turns images of a collection into vectors, and tells which cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.parallel_map import parallel_map
from dualfuse.data.sample import BrokenSample
from dualfuse.errors import DualfuseError
from dualfuse.tasks.base import Task

if TYPE_CHECKING:
    from dualfuse.search.collection import Collection


@dataclass(frozen=True)
class SkippedImage:
    """An image that cannot be read: its name, and why."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class EmbeddedImages:
    """The next images of a collection: B numbers and vectors (B, D), and those between them that were left out."""

    numbers: tuple[int, ...]
    embeddings: Tensor
    skipped: tuple[SkippedImage, ...]


def embed(
    task: Task,
    transform: ImageTransform,
    collection: Collection,
    numbers: Sequence[int],
    *,
    batch: int,
    workers: int,
) -> Iterator[EmbeddedImages]:
    """Return the vectors of the images ``numbers``, ``batch`` images at a time, read by ``workers`` threads.

    With 0 ``workers`` there is one for each processor. Raises ``DualfuseError`` if the model gives something else than
    numbers.
    """
    for chunk in pixels(transform, collection, numbers, batch=batch, workers=workers):
        readable = [(number, image) for number, image in chunk if isinstance(image, Tensor)]
        skipped = tuple(image for _, image in chunk if isinstance(image, SkippedImage))
        images = [image for _, image in readable]
        embeddings = embed_images(task, torch.stack(images)) if images else torch.empty(0, 0)
        yield EmbeddedImages(tuple(number for number, _ in readable), embeddings, skipped)


def pixels(
    transform: ImageTransform, collection: Collection, numbers: Sequence[int], *, batch: int, workers: int
) -> Iterator[list[tuple[int, Tensor | SkippedImage]]]:
    """Return the images ``numbers`` as tensors (3, H, W), each with its number, ``batch`` at a time."""
    images = parallel_map(partial(_read, transform, collection), numbers, workers)
    while chunk := list(islice(images, batch)):
        yield chunk


@torch.inference_mode()
def embed_images(task: Task, images: Tensor) -> Tensor:
    """Return unit vectors (B, D), float32 in main memory, of images (B, 3, H, W)."""
    device = next(task.model.parameters()).device
    embeddings = task.image_features(task.model.embed_image(images.to(device))).float().cpu()
    if not embeddings.isfinite().all():
        raise DualfuseError("the model gives vectors that are no numbers (NaN or infinite); did its training diverge?")
    return embeddings


def _read(transform: ImageTransform, collection: Collection, number: int) -> Tensor | SkippedImage:
    try:
        return transform(collection.read(number), np.random.default_rng(0))  # nothing is drawn without augmentation
    except BrokenSample as error:
        return SkippedImage(collection.names[number], error.reason)
    except OSError as error:
        return SkippedImage(collection.names[number], error.strerror or str(error))
    except ValueError as error:
        return SkippedImage(collection.names[number], str(error))
