"""The recipe of a BEiT checkpoint, told from its shapes: a VLMo that has seen no text yet."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from dualfuse.convert import from_shapes
from dualfuse.convert.beit import OF_LAYER, SHARED, window
from dualfuse.data.images import Looks
from dualfuse.models.vlmo import Initial, VLMoConfig
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.image_classes import ImageClassesConfig
from dualfuse.tasks.masked_image import MaskedImageConfig
from dualfuse.tasks.masked_text import MaskedTextConfig

HEAD = 64
"""Channels of an attention head of every published BEiT."""
TEXT = 196
"""Longest text that positions are made for, as in the released stage two."""
CODES = MaskedImageConfig.codes
KEPT, LARGE = 224 / 256, 384
"""BEiT is evaluated on the middle 224 of 256 pixels; pictures of 384 and more are cut out whole."""
NEW = ("model.words.*", "model.pooler.*", "model.norm.*", "model.blocks.*.experts.text.*", "word_head.*", "head.*")
"""Of a VLMo: what BEiT does not have, or not every BEiT."""


def recipe_of(tensors: Mapping[str, Tensor], name: str, *, tokenizer: str, heads: int = 0) -> Recipe:
    """Gives the recipe for tensors under our names, tables still BEiT's; ``heads`` 0: of 64 channels, as published.

    What was trained by hiding patches goes on with that, stage one; what tells classes apart is judged by them, and
    looks at pictures as it was evaluated; everything else goes on with text, stage two.
    """
    model = model_of(tensors, vocabulary=Data(tokenizer=tokenizer).text.vocabulary, heads=heads)
    task, looks = _task_of(tensors, model.patch), Looks("squeeze", "pillow")
    if isinstance(task, ImageClassesConfig):
        looks = Looks("crop", "pillow", kept=KEPT if model.image_size[0] < LARGE else 1.0)
    data = Data(image_size=model.image_size, looks=looks, text_length=TEXT, tokenizer=tokenizer)
    return Recipe(name, model, task, data)


def _task_of(tensors: Mapping[str, Tensor], patch: int) -> TaskConfig:
    head = tensors.get("head.weight")
    if "mask_token" in tensors:
        return MaskedImageConfig(codes=CODES if head is None else len(head), patch=patch)
    if head is None:
        return MaskedTextConfig()
    return ImageClassesConfig(classes=len(head), features="patches" if "norm.weight" in tensors else "first")


def model_of(tensors: Mapping[str, Tensor], *, vocabulary: int, heads: int) -> VLMoConfig:
    """Gives the numbers of the model, without vision-language experts; ``ValueError`` if VLMo has no such model."""
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
        raise ValueError(f"this BEiT has {found} of patches; VLMo has either")
    if table is not None:
        side = window(len(table))
    else:
        assert positions is not None  # one of both
        side = math.isqrt(positions.shape[1] - 1)
        if side**2 != positions.shape[1] - 1:
            raise ValueError(f"pos_embed has {positions.shape[1] - 1} patches, which is no square")
    return VLMoConfig(
        width=width,
        depth=depth,
        heads=heads or (width // HEAD if table is None else table.shape[1]),
        both_from=depth,
        patch=patch,
        image_size=(side * patch, side * patch),
        vocabulary=vocabulary,
        text_length=TEXT,
        positions="absolute" if table is None else "relative",
        initial=Initial(layer_scale=0.1 if "model.blocks.0.scale_1.weight" in tensors else 0.0),
        bias="alike" if SHARED in tensors and "mask_token" in tensors else "each",
    )
