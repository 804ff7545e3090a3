"""Turns pictures of a collection into vectors, and tells which cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from dualfuse.data.images import ImageTransform
from dualfuse.data.ordered import ordered_map
from dualfuse.data.sample import BrokenSample
from dualfuse.search.collection import Collection
from dualfuse.tasks.retrieval import Retriever


@dataclass(frozen=True)
class LeftOut:
    """A picture that cannot be read: its name, and why."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Piece:
    """The next pictures of a collection: B numbers and vectors (B, D), and those between them that were left out."""

    numbers: tuple[int, ...]
    vectors: Tensor
    left_out: tuple[LeftOut, ...]


def embed(
    task: Retriever,
    transform: ImageTransform,
    collection: Collection,
    numbers: Sequence[int],
    *,
    batch: int,
    workers: int,
) -> Iterator[Piece]:
    """Gives the vectors of the pictures ``numbers``, ``batch`` pictures at a time, read by ``workers`` threads.

    With 0 ``workers`` there is one for each processor. Raises ``ValueError`` if the model gives something else than
    numbers.
    """
    for chunk in pixels(transform, collection, numbers, batch=batch, workers=workers):
        readable = [(number, picture) for number, picture in chunk if isinstance(picture, Tensor)]
        left_out = tuple(picture for _, picture in chunk if isinstance(picture, LeftOut))
        images = [picture for _, picture in readable]
        vectors = image_vectors(task, torch.stack(images)) if images else torch.empty(0, 0)
        yield Piece(tuple(number for number, _ in readable), vectors, left_out)


def pixels(
    transform: ImageTransform, collection: Collection, numbers: Sequence[int], *, batch: int, workers: int
) -> Iterator[list[tuple[int, Tensor | LeftOut]]]:
    """Gives the pictures ``numbers`` as tensors (3, H, W), each with its number, ``batch`` at a time."""
    pictures = ordered_map(partial(_read, transform, collection), numbers, workers)
    while chunk := list(islice(pictures, batch)):
        yield chunk


@torch.inference_mode()
def image_vectors(task: Retriever, images: Tensor) -> Tensor:
    """Gives unit vectors (B, D), float32 in main memory, of pictures (B, 3, H, W)."""
    device = next(task.model.parameters()).device
    vectors = task.image_features(task.model.embed_image(images.to(device))).float().cpu()
    if not vectors.isfinite().all():
        raise ValueError("the model gives vectors that are no numbers (NaN or infinite); did its training diverge?")
    return vectors


def _read(transform: ImageTransform, collection: Collection, number: int) -> Tensor | LeftOut:
    try:
        return transform(collection.read(number), np.random.default_rng(0))  # nothing is drawn without augmentation
    except BrokenSample as error:
        return LeftOut(collection.names[number], error.reason)
    except OSError as error:
        return LeftOut(collection.names[number], error.strerror or str(error))
    except ValueError as error:
        return LeftOut(collection.names[number], str(error))
