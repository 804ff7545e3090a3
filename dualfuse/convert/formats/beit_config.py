"""The recipe of a BEiT checkpoint, from the shapes of its tensors: a VLMo without training on text."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from dualfuse.convert import shapes
from dualfuse.convert.checkpoint import BATCH_SIZE, RUN
from dualfuse.data.image.transform import Preprocess
from dualfuse.errors import DualfuseError
from dualfuse.models.vlmo import InitConfig, VLMoConfig
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.image_classification import ImageClassificationConfig
from dualfuse.tasks.pretrain.masked_image import MaskedImageConfig
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig

SHARED_TABLE, TABLE_OF_LAYER = "bias.shared", "bias.{}"
"""Temporary names of BEiT's bias tables, which VLMo joins to one."""
HEAD_WIDTH = 64
"""Channels of an attention head of every published BEiT."""
TEXT_LENGTH = 196
"""Longest text of the new positions, as in the official stage two."""
CROP_FRACTION, LARGE_SIZE = 224 / 256, 384
"""BEiT is evaluated on the central 224 of 256 pixels; images of 384 pixels and more are not cropped further."""


def recipe_of(tensors: Mapping[str, Tensor], name: str, *, tokenizer: str, heads: int = 0) -> Recipe:
    """Return the recipe for tensors under dualfuse names, with BEiT's tables; ``heads`` 0: heads of 64 channels.

    A checkpoint with a mask token resumes stage one (masked image modeling); one with a classifier is evaluated by it,
    on images as BEiT was; any other starts stage two (masked text).
    """
    vocab_size = Data(tokenizer=tokenizer).text_transform.vocab_size
    model = model_of(tensors, vocab_size=vocab_size, heads=heads)
    task, preprocess = _task_of(tensors, model.patch_size), Preprocess("squash", "pillow")
    if isinstance(task, ImageClassificationConfig):
        fraction = CROP_FRACTION if model.image_size[0] < LARGE_SIZE else 1.0
        preprocess = Preprocess("crop", "pillow", crop_fraction=fraction)
    data = Data(
        image_size=model.image_size,
        preprocess=preprocess,
        text_length=TEXT_LENGTH,
        tokenizer=tokenizer,
        batch_size=BATCH_SIZE,
    )
    return Recipe(name, model, task, data, run=RUN)


def model_of(tensors: Mapping[str, Tensor], *, vocab_size: int, heads: int) -> VLMoConfig:
    """Return the config of the model, without vision-language experts; ``DualfuseError`` if VLMo has no such model."""
    width, patch = (tensors["model.patches.projection.weight"].shape[axis] for axis in (0, -1))
    depth = shapes.count(tensors, "model.blocks.")
    table = tensors.get(SHARED_TABLE, tensors.get(TABLE_OF_LAYER.format(0)))
    side = _grid_side(table, tensors.get("model.patches.position"))
    return VLMoConfig(
        width=width,
        depth=depth,
        heads=heads or (width // HEAD_WIDTH if table is None else table.shape[1]),
        vl_expert_start=depth,
        patch_size=patch,
        image_size=(side * patch, side * patch),
        vocab_size=vocab_size,
        text_length=TEXT_LENGTH,
        positions="absolute" if table is None else "relative",
        init=InitConfig(layer_scale=0.1 if "model.blocks.0.scale_1.weight" in tensors else 0.0),
        share_relative_bias=SHARED_TABLE in tensors and "mask_token" in tensors,
    )


def table_side(rows: int) -> int:
    """Return the side g of the grid of a bias table of ``rows`` = (2g - 1)^2 + 3; ``DualfuseError`` if not square."""
    across = math.isqrt(max(0, rows - 3))
    if not across % 2 or across**2 != rows - 3:
        raise DualfuseError(f"BEiT's relative_position_bias_table has {rows} rows, which fits no square image")
    return (across + 1) // 2


def _grid_side(table: Tensor | None, positions: Tensor | None) -> int:
    if table is not None and positions is None:
        return table_side(len(table))
    if table is not None or positions is None:
        kinds = "both relative and absolute positions" if table is not None else "no positions"
        raise DualfuseError(f"this BEiT has {kinds} of patches; VLMo has either")
    side = math.isqrt(positions.shape[1] - 1)
    if side**2 != positions.shape[1] - 1:
        raise DualfuseError(f"pos_embed has {positions.shape[1] - 1} patches, which is not a square grid")
    return side


def _task_of(tensors: Mapping[str, Tensor], patch: int) -> TaskConfig:
    head = tensors.get("head.weight")
    if "mask_token" in tensors:
        return MaskedImageConfig(codes=MaskedImageConfig.codes if head is None else len(head), patch=patch)
    if head is None:
        return MaskedTextConfig()
    return ImageClassificationConfig(num_classes=len(head), features="patches" if "norm.weight" in tensors else "first")
