"""The recipe of an official VLMo checkpoint, told from its shapes and what it says of its training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from dualfuse.convert import from_shapes
from dualfuse.convert.vlmo import INDICES, Kind
from dualfuse.data.image.transform import Preprocess
from dualfuse.errors import DualfuseError
from dualfuse.models.vlmo import VL, InitConfig, VLMoConfig
from dualfuse.recipe import Data, Optim, Recipe
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

HEADS = {544: 16, 768: 12, 1024: 16}
"""Of the three published sizes by width: without relative positions no shape tells."""
TEXT = 196
"""Longest text that the published relative positions know, whatever length their model was trained with."""
PAIRS_TEXT = 40
LOOKS = Preprocess("squash", "pillow")
OPTIM: dict[Kind, Optim] = {
    "text": Optim(lr=2e-4, warmup=2500),
    "pairs": Optim(lr=3e-5, warmup=0.1),
    "vqa": Optim(lr=3e-5, warmup=0.1, head_lr_mult=20.0),
    "nlvr2": Optim(lr=5e-5, warmup=0.1),
}
"""What ``dualfuse train FOLDER`` starts with: the released rates of the base size; of pairs those for retrieval."""

Given = Mapping[str, Tensor]
Said = Mapping[str, object]


def recipe_of(tensors: Given, kept: Given, kind: Kind, said: Said, name: str) -> Recipe:
    """Return the recipe for tensors under our names; ``said`` are the checkpoint's hyper-parameters, if it has any."""
    model = model_of(tensors, kept, said)
    length = _number(said, "max_text_len") or (TEXT if kind == "text" else PAIRS_TEXT)
    data = Data(image_size=model.image_size, preprocess=LOOKS, text_length=min(length, model.text_length))
    return Recipe(name, model, task_of(tensors, kind), data, OPTIM[kind])


def model_of(tensors: Given, kept: Given, said: Said) -> VLMoConfig:
    """Return the numbers of the model; ``DualfuseError`` if the file does not hold them all."""
    from_shapes.required(
        tensors,
        "model.types.weight",
        "model.patches.projection.weight",
        "model.words.word.weight",
        "model.blocks.0.attention.shared.qkv.weight",
    )
    rows, width = tensors["model.types.weight"].shape
    depth, patch = from_shapes.count(tensors, "model.blocks."), tensors["model.patches.projection.weight"].shape[-1]
    drop_path = said.get("drop_path_rate")
    common = VLMoConfig(
        width=width,
        depth=depth,
        vl_expert_start=_both_from(tensors, depth),
        patch_size=patch,
        image_size=(patch, patch),
        vocab_size=len(tensors["model.words.word.weight"]),
        init=InitConfig(layer_scale=0.1 if "model.blocks.0.scale_1.weight" in tensors else 0.0),
        drop_path=drop_path if isinstance(drop_path, float) else VLMoConfig.drop_path,
        image_slots=rows - 1,
    )
    if "model.relative_bias.table" in tensors:
        table = tensors["model.relative_bias.table"]
        side, text = relative_sizes(len(table), kept, said)
        size = side * patch
        return replace(common, heads=table.shape[1] // depth, image_size=(size, size), text_length=text)
    from_shapes.required(tensors, "model.patches.position", "model.words.position.weight")
    height, width_of_grid = _grid(tensors["model.patches.position"].shape[1] - 1, said, patch)
    return replace(
        common,
        heads=_heads(width, said),
        positions="absolute",
        image_size=(height * patch, width_of_grid * patch),
        text_length=len(tensors["model.words.position.weight"]),
    )


def relative_sizes(rows: int, kept: Given, said: Said) -> tuple[int, int]:
    """Return the side of the square grid, and the longest text, of a bias table of ``rows``: (2g - 1)^2 + 2t + 5.

    The grid's own index tells, where the file has it; else the text length that training named, or the published one.
    """
    if (index := kept.get(INDICES[0])) is not None:
        side = math.isqrt(len(index) - 1)
        text = (rows - 5 - (2 * side - 1) ** 2) // 2
        if text > 0 and rows == (2 * side - 1) ** 2 + 2 * text + 5:
            return side, text
    for text in (_number(said, "max_text_len_of_initckpt"), TEXT):
        across = math.isqrt(max(0, rows - 2 * text - 5))
        if text and across % 2 and across**2 == rows - 2 * text - 5:
            return (across + 1) // 2, text
    raise DualfuseError(
        f"relative_position_bias_table has {rows} rows, which fits no square image with texts of {TEXT} tokens, as "
        "published; a file of other sizes must tell max_text_len_of_initckpt in its hyper_parameters, or hold "
        f"{INDICES[0]}"
    )


def task_of(tensors: Given, kind: Kind) -> TaskConfig:
    """Return the task whose heads the checkpoint holds."""
    if kind == "pairs":
        return _pairs(tensors)
    if kind == "text":
        return MaskedTextConfig()
    from_shapes.required(tensors, "classifier.0.weight", "classifier.3.weight")
    scale = len(tensors["classifier.0.weight"]) / tensors["model.types.weight"].shape[1]
    if kind == "vqa":
        return VQAConfig(num_answers=len(tensors["classifier.3.weight"]), hidden_scale=scale)
    return NLVR2Config(hidden_scale=scale)


def _pairs(tensors: Given) -> PairsConfig:
    """What was fine-tuned for retrieval has the plain view of contrast alone."""
    return PairsConfig(
        itc_weight=float("itc_heads.0.image.weight" in tensors),
        itm_weight=float("itm_head.weight" in tensors),
        mlm_weight=0.25 * ("mlm_head.dense.weight" in tensors),
        itc_features="all" if "itc_heads.1.image.weight" in tensors else "unimodal",
    )


def _both_from(tensors: Given, depth: int) -> int:
    """Return the first layer with a vision-language expert; ``depth`` if none has one, as in stage two."""
    has = [f"model.blocks.{layer}.experts.{VL}.up.weight" in tensors for layer in range(depth)]
    first = has.index(True) if True in has else depth
    if not all(has[first:]):
        raise DualfuseError(f"layer {first} has a vision-language expert (mlp_vl), but not all above it: not complete")
    return first


def _heads(width: int, said: Said) -> int:
    heads = _number(said, "num_heads") or HEADS.get(width, 0)
    if not heads:
        raise DualfuseError(
            f"nothing tells into how many heads the width {width} is split: known are "
            f"{', '.join(map(str, HEADS))}; name num_heads in the file's hyper_parameters"
        )
    return heads


def _grid(patches: int, said: Said, patch: int) -> tuple[int, int]:
    size = said.get("image_size")
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size):
        grid = (size[0] // patch, size[1] // patch)
    else:
        grid = (math.isqrt(patches), math.isqrt(patches))
    if grid[0] * grid[1] != patches:
        raise DualfuseError(
            f"transformer.pos_embed has {patches} patches, which is no {grid[0]} x {grid[1]}; name image_size as "
            "[height, width] in the file's hyper_parameters"
        )
    return grid


def _number(said: Said, name: str) -> int:
    value = said.get(name)
    return value if isinstance(value, int) else 0
