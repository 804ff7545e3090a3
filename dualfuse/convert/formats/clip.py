"""CLIP in the layouts of OpenAI and of Hugging Face: the image tower."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dualfuse.convert.rename import ImportedTensors, Layout, Table, add_prefixes, import_tensors, weight_and_bias
from dualfuse.errors import DualfuseError

_BLOCK = {"attn.in_proj_weight": "attention.qkv.weight", "attn.in_proj_bias": "attention.qkv.bias"} | weight_and_bias(
    {
        "attn.out_proj": "attention.projection",
        "ln_1": "norm_1",
        "ln_2": "norm_2",
        "mlp.c_fc": "up",
        "mlp.c_proj": "down",
    }
)
OPENAI_BLOCKS = weight_and_bias({"ln_pre": "norm_before", "ln_post": "norm_after"}) | add_prefixes(
    _BLOCK, "transformer.resblocks.{}.", "blocks.{}."
)
"""OpenAI's names of all but the embeddings, for which BridgeTower in Hugging Face has names of its own."""
OPENAI_TOWER = OPENAI_BLOCKS | {
    "class_embedding": "class_embedding",
    "positional_embedding": "positions",
    "conv1.weight": "projection.weight",
}
OPENAI = Layout(
    names=add_prefixes(OPENAI_TOWER, "visual.", "model.image_tower."),
    unused=(
        "visual.proj",
        "transformer.*",
        "token_embedding.weight",
        "positional_embedding",
        "ln_final.*",
        "text_projection",
        "logit_scale",
        "input_resolution",
        "context_length",
        "vocab_size",
    ),
)
"""OpenAI's CLIP; its text tower and both projections are unused."""

HUGGING_FACE_EMBEDDINGS: Table = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positions",
    "embeddings.patch_embedding.weight": "projection.weight",
}
HUGGING_FACE_BLOCKS: Table = weight_and_bias(
    {
        "encoder.layers.{}.self_attn.qkv_proj": "blocks.{}.attention.qkv",  # after fuse_qkv
        "encoder.layers.{}.self_attn.out_proj": "blocks.{}.attention.projection",
        "encoder.layers.{}.layer_norm1": "blocks.{}.norm_1",
        "encoder.layers.{}.layer_norm2": "blocks.{}.norm_2",
        "encoder.layers.{}.mlp.fc1": "blocks.{}.up",
        "encoder.layers.{}.mlp.fc2": "blocks.{}.down",
    }
)
"""Hugging Face's names of the blocks of both towers of CLIP and SigLIP."""
HUGGING_FACE_TOWER: Table = (
    HUGGING_FACE_EMBEDDINGS
    | weight_and_bias({"pre_layrnorm": "norm_before", "post_layernorm": "norm_after"})  # sic
    | HUGGING_FACE_BLOCKS
)
HUGGING_FACE = Layout(
    names=add_prefixes(HUGGING_FACE_TOWER, "vision_model.", "model.image_tower."),
    unused=(
        "text_model.*",
        "visual_projection.weight",
        "text_projection.weight",
        "logit_scale",
        "vision_model.embeddings.position_ids",
    ),
)
"""CLIPModel, and CLIPVisionModel of transformers before version 5, after :func:`fuse_qkv`."""
BARE_HUGGING_FACE = Layout(
    add_prefixes(HUGGING_FACE_TOWER, "", "model.image_tower."), unused=("embeddings.position_ids",)
)
"""CLIPVisionModel of transformers 5, after :func:`fuse_qkv`."""


def import_clip(tensors: Mapping[str, Tensor]) -> ImportedTensors:
    """Return the tensors of a CLIP, in any of the layouts, under the names of the image tower."""
    if "visual.class_embedding" in tensors:
        return import_tensors(tensors, OPENAI)
    has_prefix = any(name.startswith("vision_model.") for name in tensors)
    return import_tensors(fuse_qkv(tensors), HUGGING_FACE if has_prefix else BARE_HUGGING_FACE)


def fuse_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate the query, key and value projections of Hugging Face's image tower, in this order."""
    return concatenate_qkv(tensors, r"((?!text_model\.).*\.self_attn\.)({})(_proj\..*)", ("q", "k", "v"), "CLIP")


def concatenate_qkv(
    tensors: Mapping[str, Tensor], pattern: str, parts: tuple[str, str, str], model: str
) -> dict[str, Tensor]:
    """Concatenate query, key and value tensors along their first axis, under the name "qkv" in place of ``parts``.

    ``pattern`` has three groups; the second, {}, is one of ``parts``. Raises ``DualfuseError`` if a key or value is
    missing in a file of ``model``.
    """
    compiled, fused = re.compile(pattern.format("|".join(parts))), {}
    for name, tensor in tensors.items():
        if not (match := compiled.fullmatch(name)):
            fused[name] = tensor
        elif match[2] == parts[0]:
            names = [match[1] + part + match[3] for part in parts]
            if missing := [each for each in names if each not in tensors]:
                raise DualfuseError(f"this {model} has no {' and no '.join(missing)} beside {name}: it is not complete")
            fused[f"{match[1]}qkv{match[3]}"] = torch.cat([tensors[each] for each in names])
    return fused
