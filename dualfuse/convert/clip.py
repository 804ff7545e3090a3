"""CLIP in the layouts of OpenAI and of Hugging Face, for the image tower."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dualfuse.convert.rename import Layout, Table, inside, weight_and_bias
from dualfuse.errors import DualfuseError

BLOCK = {
    "attn.in_proj_weight": "attention.qkv.weight",
    "attn.in_proj_bias": "attention.qkv.bias",
} | weight_and_bias(
    {
        "attn.out_proj": "attention.projection",
        "ln_1": "norm_1",
        "ln_2": "norm_2",
        "mlp.c_fc": "up",
        "mlp.c_proj": "down",
    }
)
"""One pre-norm block, as OpenAI names it."""

ABOVE_PATCHES = weight_and_bias({"ln_pre": "norm_before", "ln_post": "norm_after"}) | inside(
    BLOCK, "transformer.resblocks.{}.", "blocks.{}."
)
"""All of OpenAI's names but those of the embeddings, which BridgeTower in Hugging Face has of its own."""

TOWER = {
    "class_embedding": "class_embedding",
    "positional_embedding": "positions",
    "conv1.weight": "projection.weight",
} | ABOVE_PATCHES
"""The image tower, as OpenAI names it."""

OPENAI = Layout(
    names=inside(TOWER, "visual.", "model.image_tower."),
    kept={},
    dropped=(
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
"""OpenAI's CLIP: its text side and both projections are not read."""

_HUGGING_FACE: Table = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positions",
    "embeddings.patch_embedding.weight": "projection.weight",
} | weight_and_bias(
    {
        "pre_layrnorm": "norm_before",  # sic
        "post_layernorm": "norm_after",
        "encoder.layers.{}.self_attn.qkv_proj": "blocks.{}.attention.qkv",  # three in the file: see joined
        "encoder.layers.{}.self_attn.out_proj": "blocks.{}.attention.projection",
        "encoder.layers.{}.layer_norm1": "blocks.{}.norm_1",
        "encoder.layers.{}.layer_norm2": "blocks.{}.norm_2",
        "encoder.layers.{}.mlp.fc1": "blocks.{}.up",
        "encoder.layers.{}.mlp.fc2": "blocks.{}.down",
    }
)

HUGGING_FACE = Layout(
    names=inside(_HUGGING_FACE, "vision_model.", "model.image_tower."),
    kept={},
    dropped=(
        "text_model.*",
        "visual_projection.weight",
        "text_projection.weight",
        "logit_scale",
        "vision_model.embeddings.position_ids",
    ),
)
"""CLIPModel, and CLIPVisionModel as older versions write it, after :func:`joined`."""

BARE_HUGGING_FACE = Layout(inside(_HUGGING_FACE, "", "model.image_tower."), {}, ("embeddings.position_ids",))
"""CLIPVisionModel as transformers 5 writes it, after :func:`joined`."""


def joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stack separate query, key and value of Hugging Face's CLIP: ...self_attn.qkv_proj, rows in this order."""
    joined = {}
    for name, tensor in tensors.items():
        layer, middle, part = name.partition(".self_attn.")
        letter, _, kind = part.partition("_proj.")
        if not middle or letter not in ("q", "k", "v") or name.startswith("text_model."):
            joined[name] = tensor
        elif letter == "q":
            names = [f"{layer}.self_attn.{other}_proj.{kind}" for other in "qkv"]
            if missing := [other for other in names if other not in tensors]:
                raise DualfuseError(
                    f"this CLIP has {name}, but no {' and no '.join(missing)}: the file is not complete"
                )
            joined[f"{layer}.self_attn.qkv_proj.{kind}"] = torch.cat([tensors[other] for other in names])
    return joined
