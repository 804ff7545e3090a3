"""What the shapes of tensors, under our names, say about the model they belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.models.towers.clip_vit import HEAD_WIDTH, CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig

PAD = 1  # of every RoBERTa


def image_tower(tensors: Mapping[str, Tensor]) -> CLIPViTConfig:
    """Return the numbers of the image tower."""
    rows, width = tensors["model.image_tower.positions"].shape
    patch = tensors["model.image_tower.projection.weight"].shape[-1]
    side = patch * math.isqrt(rows - 1)
    depth = count(tensors, "model.image_tower.blocks.")
    return CLIPViTConfig(width, depth, patch_size=patch, image_size=(side, side))


def text_tower(tensors: Mapping[str, Tensor], heads: int = 0) -> RobertaConfig:
    """Return the numbers of the text tower; ``heads`` 0: of 64 channels, as every published one."""
    vocabulary, width = tensors["model.text_tower.words.word.weight"].shape
    if (types := len(tensors["model.text_tower.words.token_type.weight"])) != 1:
        raise DualfuseError(f"the text tower has {types} token types; RoBERTa has 1, and BERT is not known here")
    return RobertaConfig(
        width=width,
        depth=count(tensors, "model.text_tower.layers."),
        heads=heads or width // HEAD_WIDTH,
        feed_forward=len(tensors["model.text_tower.layers.0.up.weight"]),
        vocab_size=vocabulary,
        text_length=len(tensors["model.text_tower.words.position.weight"]) - PAD - 1,
        pad_id=PAD,
    )


def count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many numbered parts there are below a prefix."""
    return 1 + max(
        (int(name.removeprefix(prefix).split(".")[0]) for name in tensors if name.startswith(prefix)), default=-1
    )


def required(tensors: Mapping[str, Tensor], *names: str) -> None:
    """Refuse tensors without those that tell the size of a model."""
    if missing := [name for name in names if name not in tensors]:
        raise DualfuseError(f"the file has no {', no '.join(missing)} (names of dualfuse), so it is not complete")
