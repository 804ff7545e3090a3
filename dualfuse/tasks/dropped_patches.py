"""Pictures of which contrast sees some patches only (FLIP, arXiv 2212.00794): more pairs for the same work."""

from __future__ import annotations

import torch

from dualfuse.models.base import Tokens, VisionLanguageModel
from dualfuse.tasks.contrast import gumbel


def some_patches(image: Tokens, numbers: torch.Tensor, share: float, key: int) -> Tokens:
    """Gives the class token and a ``share`` of the patches of each picture, at least one, drawn without replacement.

    What is drawn is a function of ``key``, which all processes share, and of the pictures' ``numbers`` (B,) in the
    batch of all processes: not of who holds them, nor of how many at a time.
    """
    patches = image.mask.shape[1] - 1
    drawn = gumbel(key, numbers, patches).topk(max(1, round(share * patches)), sorted=False).indices
    return image.keep(torch.cat([image.first, 1 + drawn], dim=1))


def check_patches_kept(share: float, model: VisionLanguageModel) -> None:
    """Raises ``ValueError`` for a share that is none, and for a model that reads whole pictures alone."""
    if not 0 < share <= 1:
        raise ValueError(f"patches_kept is {share}; give a share of the patches above 0, or 1 for all")
    if share < 1 and not model.can_drop_patches:
        raise ValueError(
            f"patches_kept is {share}, but this {type(model).__name__} reads whole pictures alone: relative positions "
            "speak of a whole grid, and BridgeTower runs one tower for contrast and fusion. Take a VLMo with "
            "--model.positions absolute, or set patches_kept to 1"
        )
