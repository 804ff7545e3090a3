"""The recipe of an official VLMo checkpoint, from the shapes of its tensors and its hyper-parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from torch import Tensor

from dualfuse.convert import shapes as sizes
from dualfuse.convert.checkpoint import BATCH_SIZE, RUN
from dualfuse.data.image.transform import Preprocess
from dualfuse.errors import DualfuseError
from dualfuse.models.vlmo import VL, InitConfig, VLMoConfig
from dualfuse.recipe import Data, Optim, Recipe
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

Kind = Literal["text", "pairs", "vqa", "nlvr2"]
"""Stage two; stage three or retrieval; and tasks with a classifier."""
OPTIM: dict[Kind, Optim] = {
    "text": Optim(lr=2e-4, warmup=2500),
    "pairs": Optim(lr=3e-5, warmup=0.1),
    "vqa": Optim(lr=3e-5, warmup=0.1, head_lr_mult=20.0),
    "nlvr2": Optim(lr=5e-5, warmup=0.1),
}
"""Optimizer settings of a converted checkpoint: the official ones of the base size, for pairs those of retrieval."""
HEADS = {544: 16, 768: 12, 1024: 16}
"""Attention heads of the published sizes by width: without relative positions no shape tells them."""
RELATIVE_TEXT_LENGTH = 196
"""Text length of the published relative positions, whatever length the model was trained with."""
PAIRS_TEXT_LENGTH = 40
GRID_INDEX = "relative_position_index"
"""Rows of the bias table for images."""


def model_of(
    tensors: Mapping[str, Tensor], kept: Mapping[str, Tensor], hyper_parameters: Mapping[str, object]
) -> VLMoConfig:
    """Return the config of the model; ``DualfuseError`` if the file does not determine it."""
    types, width = tensors["model.types.weight"].shape
    depth, patch = sizes.count(tensors, "model.blocks."), tensors["model.patches.projection.weight"].shape[-1]
    drop_path = hyper_parameters.get("drop_path_rate")
    common = VLMoConfig(
        width=width,
        depth=depth,
        vl_expert_start=_vl_expert_start(tensors, depth),
        patch_size=patch,
        image_size=(patch, patch),
        vocab_size=len(tensors["model.words.word.weight"]),
        init=InitConfig(layer_scale=0.1 if "model.blocks.0.scale_1.weight" in tensors else 0.0),
        drop_path=drop_path if isinstance(drop_path, float) else VLMoConfig.drop_path,
        image_slots=types - 1,
    )
    if (table := tensors.get("model.relative_bias.table")) is not None:
        side, text = relative_sizes(len(table), kept, hyper_parameters)
        size = (side * patch, side * patch)
        return replace(common, heads=table.shape[1] // depth, image_size=size, text_length=text)
    rows, columns = _grid(tensors["model.patches.position"].shape[1] - 1, hyper_parameters, patch)
    return replace(
        common,
        heads=_heads(width, hyper_parameters),
        positions="absolute",
        image_size=(rows * patch, columns * patch),
        text_length=len(tensors["model.words.position.weight"]),
    )


def relative_sizes(rows: int, kept: Mapping[str, Tensor], hyper_parameters: Mapping[str, object]) -> tuple[int, int]:
    """Return the side g of the grid and the text length t of a bias table of ``rows`` = (2g - 1)^2 + 2t + 5.

    The grid follows from its own index, if the file has it; else t from the hyper-parameters, or the published one.
    """
    if (index := kept.get(GRID_INDEX)) is not None:
        side = math.isqrt(len(index) - 1)
        text = (rows - 5 - (2 * side - 1) ** 2) // 2
        if text > 0 and rows == (2 * side - 1) ** 2 + 2 * text + 5:
            return side, text
    for text in (sizes.integer(hyper_parameters, "max_text_len_of_initckpt"), RELATIVE_TEXT_LENGTH):
        across = math.isqrt(max(0, rows - 2 * text - 5))
        if text and across % 2 and across**2 == rows - 2 * text - 5:
            return (across + 1) // 2, text
    raise DualfuseError(
        f"relative_position_bias_table has {rows} rows, which fits no square image with texts of "
        f"{RELATIVE_TEXT_LENGTH} tokens, as published; a file of other sizes must have max_text_len_of_initckpt in its "
        f"hyper_parameters, or hold {GRID_INDEX}"
    )


def task_of(tensors: Mapping[str, Tensor], kind: Kind) -> TaskConfig:
    """Return the task whose heads the checkpoint holds."""
    if kind == "text":
        return MaskedTextConfig()
    if kind == "pairs":  # fine-tuning for retrieval keeps only the ITC head of the unimodal features
        return PairsConfig(
            itc_weight=float("itc_heads.0.image.weight" in tensors),
            itm_weight=float("itm_head.weight" in tensors),
            mlm_weight=0.25 * ("mlm_head.dense.weight" in tensors),
            itc_features="all" if "itc_heads.1.image.weight" in tensors else "unimodal",
        )
    scale = len(tensors["classifier.0.weight"]) / tensors["model.types.weight"].shape[1]
    if kind == "vqa":
        return VQAConfig(num_answers=len(tensors["classifier.3.weight"]), hidden_scale=scale)
    return NLVR2Config(hidden_scale=scale)


def recipe_of(
    tensors: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    kind: Kind,
    hyper_parameters: Mapping[str, object],
    name: str,
) -> Recipe:
    """Return the recipe for tensors under dualfuse names; the hyper-parameters may be empty."""
    model = model_of(tensors, kept, hyper_parameters)
    length = sizes.integer(hyper_parameters, "max_text_len")
    length = length or (RELATIVE_TEXT_LENGTH if kind == "text" else PAIRS_TEXT_LENGTH)
    data = Data(
        image_size=model.image_size,
        preprocess=Preprocess("squash", "pillow"),
        text_length=min(length, model.text_length),
        batch_size=BATCH_SIZE,
    )
    return Recipe(name, model, task_of(tensors, kind), data, OPTIM[kind], RUN)


def _vl_expert_start(tensors: Mapping[str, Tensor], depth: int) -> int:
    """Return the first layer with a vision-language expert; ``depth`` if none has one, as in stage two."""
    has = [f"model.blocks.{layer}.experts.{VL}.up.weight" in tensors for layer in range(depth)]
    first = has.index(True) if True in has else depth
    if not all(has[first:]):
        raise DualfuseError(f"layer {first} has a vision-language expert (mlp_vl), but not all above it: not complete")
    return first


def _heads(width: int, hyper_parameters: Mapping[str, object]) -> int:
    heads = sizes.integer(hyper_parameters, "num_heads") or HEADS.get(width, 0)
    if not heads:
        raise DualfuseError(
            f"the number of attention heads for the width {width} is unknown: published widths are "
            f"{', '.join(map(str, HEADS))}; set num_heads in the file's hyper_parameters"
        )
    return heads


def _grid(patches: int, hyper_parameters: Mapping[str, object], patch: int) -> tuple[int, int]:
    size = hyper_parameters.get("image_size")
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size):
        grid = (size[0] // patch, size[1] // patch)
    else:
        grid = (math.isqrt(patches), math.isqrt(patches))
    if grid[0] * grid[1] != patches:
        raise DualfuseError(
            f"transformer.pos_embed has {patches} patches, not {grid[0]} x {grid[1]}; set image_size to "
            "[height, width] in the file's hyper_parameters"
        )
    return grid
