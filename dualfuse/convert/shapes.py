"""Infer the sizes of a model from the shapes of its tensors, under dualfuse names."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.models.towers.clip_vit import HEAD_WIDTH, CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig

ROBERTA_PAD_ID = 1


def image_tower(tensors: Mapping[str, Tensor]) -> CLIPViTConfig:
    """Return the config of the image tower."""
    positions, width = tensors["model.image_tower.positions"].shape
    patch = tensors["model.image_tower.projection.weight"].shape[-1]
    side = patch * math.isqrt(positions - 1)
    depth = count(tensors, "model.image_tower.blocks.")
    return CLIPViTConfig(width, depth, patch_size=patch, image_size=(side, side))


def text_tower(tensors: Mapping[str, Tensor], heads: int = 0) -> RobertaConfig:
    """Return the config of the text tower; ``heads`` 0: heads of 64 channels, as in every published one."""
    vocab_size, width = tensors["model.text_tower.words.word.weight"].shape
    if (types := len(tensors["model.text_tower.words.token_type.weight"])) != 1:
        raise DualfuseError(f"the text tower has {types} token types; RoBERTa has 1, and BERT is not supported here")
    return RobertaConfig(
        width=width,
        depth=count(tensors, "model.text_tower.layers."),
        heads=heads or width // HEAD_WIDTH,
        feed_forward=len(tensors["model.text_tower.layers.0.up.weight"]),
        vocab_size=vocab_size,
        text_length=len(tensors["model.text_tower.words.position.weight"]) - ROBERTA_PAD_ID - 1,
        pad_id=ROBERTA_PAD_ID,
    )


def count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of indexed modules below a prefix."""
    indices = (int(name.removeprefix(prefix).split(".")[0]) for name in tensors if name.startswith(prefix))
    return 1 + max(indices, default=-1)


def integer(hyper_parameters: Mapping[str, object], name: str, default: int = 0) -> int:
    """Return a hyper-parameter that a checkpoint stores, or ``default`` if it is missing or not an integer."""
    value = hyper_parameters.get(name, default)
    return value if isinstance(value, int) else default
