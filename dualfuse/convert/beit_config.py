"""The recipe of a BEiT checkpoint, told from its shapes: a VLMo that has seen no text yet."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from dualfuse.convert import from_shapes
from dualfuse.convert.beit import OF_LAYER, SHARED, window
from dualfuse.data.image.transform import Preprocess
from dualfuse.errors import DualfuseError
from dualfuse.models.vlmo import InitConfig, VLMoConfig
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.image_classification import ImageClassificationConfig
from dualfuse.tasks.pretrain.masked_image import MaskedImageConfig
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig

HEAD = 64
"""Channels of an attention head of every published BEiT."""
TEXT = 196
"""Longest text that positions are made for, as in the released stage two."""
CODES = MaskedImageConfig.codes
KEPT, LARGE = 224 / 256, 384
"""BEiT is evaluated on the middle 224 of 256 pixels; images of 384 and more are cut out whole."""
NEW = ("model.words.*", "model.pooler.*", "model.norm.*", "model.blocks.*.experts.text.*", "mlm_head.*", "head.*")
"""Of a VLMo: what BEiT does not have, or not every BEiT."""


def recipe_of(tensors: Mapping[str, Tensor], name: str, *, tokenizer: str, heads: int = 0) -> Recipe:
    """Return the recipe for tensors under our names, tables still BEiT's; ``heads`` 0: of 64 channels, as published.

    What was trained by hiding patches goes on with that, stage one; what tells classes apart is judged by them, and
    looks at images as it was evaluated; everything else goes on with text, stage two.
    """
    model = model_of(tensors, vocabulary=Data(tokenizer=tokenizer).text_transform.vocab_size, heads=heads)
    task, preprocess = _task_of(tensors, model.patch_size), Preprocess("squash", "pillow")
    if isinstance(task, ImageClassificationConfig):
        preprocess = Preprocess("crop", "pillow", crop_fraction=KEPT if model.image_size[0] < LARGE else 1.0)
    data = Data(image_size=model.image_size, preprocess=preprocess, text_length=TEXT, tokenizer=tokenizer)
    return Recipe(name, model, task, data)


def _task_of(tensors: Mapping[str, Tensor], patch: int) -> TaskConfig:
    head = tensors.get("head.weight")
    if "mask_token" in tensors:
        return MaskedImageConfig(codes=CODES if head is None else len(head), patch=patch)
    if head is None:
        return MaskedTextConfig()
    return ImageClassificationConfig(num_classes=len(head), features="patches" if "norm.weight" in tensors else "first")


def model_of(tensors: Mapping[str, Tensor], *, vocabulary: int, heads: int) -> VLMoConfig:
    """Return the numbers of the model, without vision-language experts; ``DualfuseError`` if VLMo has no such model."""
    from_shapes.required(
        tensors,
        "model.patches.class_token",
        "model.patches.projection.weight",
        "model.blocks.0.experts.image.up.weight",
    )
    width, patch = (tensors["model.patches.projection.weight"].shape[axis] for axis in (0, -1))
    depth = from_shapes.count(tensors, "model.blocks.")
    table, positions = tensors.get(SHARED, tensors.get(OF_LAYER.format(0))), tensors.get("model.patches.position")
    if (table is None) == (positions is None):
        found = "both relative and absolute positions" if table is not None else "no positions"
        raise DualfuseError(f"this BEiT has {found} of patches; VLMo has either")
    if table is not None:
        side = window(len(table))
    else:
        assert positions is not None  # one of both
        side = math.isqrt(positions.shape[1] - 1)
        if side**2 != positions.shape[1] - 1:
            raise DualfuseError(f"pos_embed has {positions.shape[1] - 1} patches, which is no square")
    return VLMoConfig(
        width=width,
        depth=depth,
        heads=heads or (width // HEAD if table is None else table.shape[1]),
        vl_expert_start=depth,
        patch_size=patch,
        image_size=(side * patch, side * patch),
        vocab_size=vocabulary,
        text_length=TEXT,
        positions="absolute" if table is None else "relative",
        init=InitConfig(layer_scale=0.1 if "model.blocks.0.scale_1.weight" in tensors else 0.0),
        share_relative_bias=SHARED in tensors and "mask_token" in tensors,
    )
