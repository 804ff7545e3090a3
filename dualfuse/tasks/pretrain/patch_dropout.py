"""Patch dropout: ITC reads a random part of each image (FLIP, arXiv 2212.00794), for more pairs at the same cost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dualfuse import distributed as dist
from dualfuse.errors import DualfuseError
from dualfuse.losses.grad_cache import Embeddings, grad_cache, materialize
from dualfuse.losses.hard_negatives import gumbel
from dualfuse.models.base import Tokens, VisionLanguageModel


def encode_part(
    encode: Callable[[Embeddings], tuple[Tensor, ...]], image: Embeddings, dropout: float, chunk: int
) -> tuple[Tensor, ...]:
    """Return ``encode`` of the remaining patches of this process's images, ``chunk`` at a time (0: all)."""
    if not dropout:
        return grad_cache(encode, chunk, image)
    key, numbers = dist.draw_shared(), torch.arange(len(image), device=image.device) + dist.rank() * len(image)

    def encode_chunk(part: Embeddings, numbers: Tensor) -> tuple[Tensor, ...]:
        return encode(drop_patches(materialize(part), numbers, dropout, key))

    return grad_cache(encode_chunk, chunk, image, numbers)


def drop_patches(image: Tokens, numbers: Tensor, dropout: float, key: int) -> Tokens:
    """Return the class token and the patches that remain, at least one per image.

    ``dropout`` is the fraction of patches that is dropped. The draw is a function of ``key``, which all processes
    share, and of the images' ``numbers`` (B,) in the global batch: it depends neither on the process that holds an
    image nor on the chunk size.
    """
    patches = image.mask.shape[1] - 1
    drawn = gumbel(key, numbers, patches).topk(max(1, round((1 - dropout) * patches)), sorted=False).indices
    return image.select(torch.cat([image.first, 1 + drawn], dim=1))


def check_patch_dropout(dropout: float, model: VisionLanguageModel) -> None:
    """Raise ``DualfuseError`` for a fraction outside [0, 1), and for a model that cannot encode part of an image."""
    if not 0 <= dropout < 1:
        raise DualfuseError(f"patch_dropout is {dropout}; give the fraction of patches to drop: at least 0 and below 1")
    if dropout and not model.capabilities.patch_dropout:
        raise DualfuseError(
            f"patch_dropout is {dropout}, but this {type(model).__name__} encodes whole images only: relative "
            "positions need the whole grid, and BridgeTower's towers serve ITC and fusion in one pass. Choose a VLMo "
            "with --model.positions absolute, or set patch_dropout to 0"
        )
