"""BEiT (arXiv 2106.08254) in the layouts of microsoft/unilm, timm and Hugging Face: what VLMo starts from."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from dualfuse.convert.from_shapes import count
from dualfuse.convert.rename import Layout, Table, inside, weight_and_bias
from dualfuse.errors import DualfuseError

_BLOCK: Table = {
    "attn.qkv.weight": "attention.shared.qkv.weight",
    "attn.q_bias": "attention.shared.q_bias",
    "attn.v_bias": "attention.shared.v_bias",
    "gamma_1": "scale_1.weight",
    "gamma_2": "scale_2.weight",
} | weight_and_bias(
    {
        "norm1": "norm",
        "attn.proj": "attention.shared.projection",
        "norm2": "experts.image.norm",
        "mlp.fc1": "experts.image.up",
        "mlp.fc2": "experts.image.down",
    }
)
SHARED, OF_LAYER = "bias.shared", "bias.{}"
"""What bias tables are called until :func:`as_vlmo` makes one of them."""
_NAMES: Table = (
    {
        "cls_token": "model.patches.class_token",
        "pos_embed": "model.patches.position",
        "mask_token": "mask_token",
        "rel_pos_bias.relative_position_bias_table": SHARED,
        "blocks.{}.attn.relative_position_bias_table": OF_LAYER,
    }
    | weight_and_bias({"patch_embed.proj": "model.patches.projection", "norm": "model.norm", "lm_head": "head"})
    | inside(_BLOCK, "blocks.{}.", "model.blocks.{}.")
)
_CLASSES = weight_and_bias({"fc_norm": "norm", "head": "head"})
"""Of images: read together, or not at all."""

_LAYER = {
    "attention.attention.qkv.weight": "attn.qkv.weight",  # three in the file: see joined
    "attention.attention.query.bias": "attn.q_bias",
    "attention.attention.value.bias": "attn.v_bias",
    "attention.attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
    "lambda_1": "gamma_1",
    "lambda_2": "gamma_2",
} | weight_and_bias(
    {
        "layernorm_before": "norm1",
        "attention.output.dense": "attn.proj",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
)
_HUGGING_FACE = (
    {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.mask_token": "mask_token",
        "encoder.relative_position_bias.relative_position_bias_table": "rel_pos_bias.relative_position_bias_table",
    }
    | weight_and_bias({"embeddings.patch_embeddings.projection": "patch_embed.proj"})
    | inside(_LAYER, "encoder.layer.{}.", "blocks.{}.")
)
_HEADS = weight_and_bias({"layernorm": "norm", "lm_head": "lm_head"})
PREFIX = "beit."
"""Of everything but the heads, in files of Hugging Face's models that have heads; the bare BeitModel has none."""


def official(names: Collection[str]) -> Layout:
    """Return the names in a file of microsoft/unilm, or of timm, which leaves the indices out."""
    dead = ("*relative_position_index", "blocks.*.attn.k_bias", "fc_norm.*", "head.*", "fpn*")
    return Layout({**_NAMES, **(_CLASSES if "head.weight" in names else {})}, {}, dead)


def classes() -> dict[str, str]:
    """Return the official names, and ours, of what tells classes apart, one to one: each layer has its own table."""
    return {
        theirs: ours for theirs, ours in _NAMES.items() if not theirs.startswith(("lm_head.", "mask_token"))
    } | _CLASSES


def hugging_face(prefix: str, names: Collection[str]) -> Layout:
    """Return the names in a file of transformers, after :func:`joined`."""
    table = {theirs: _NAMES[official] for theirs, official in (inside(_HUGGING_FACE, prefix, "") | _HEADS).items()}
    if "classifier.weight" in names:
        rows = {f"{prefix}layernorm": "model.norm", f"{prefix}pooler.layernorm": "norm", "classifier": "head"}
        table |= weight_and_bias(rows)
    dead = (
        "*relative_position_index",
        f"{prefix}pooler.*",
        "classifier.*",
        "decode_head.*",
        "auxiliary_head.*",
        "fpn*",
    )
    return Layout(table, {}, dead)


def is_beit(names: Collection[str]) -> bool:
    """Whether a state dict with these names comes from the official code or from timm."""
    return {"cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.q_bias"} <= set(names)


def joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stack separate queries, keys and values of Hugging Face: ...attention.qkv.weight, rows in this order."""
    stacked, parts = {}, ("query", "key", "value")
    for name, tensor in tensors.items():
        layer, middle, part = name.partition(".attention.attention.")
        if not middle or part not in [f"{letter}.weight" for letter in parts]:
            stacked[name] = tensor
        elif part == "query.weight":
            names = [f"{layer}{middle}{letter}.weight" for letter in parts]
            if missing := [other for other in names if other not in tensors]:
                raise DualfuseError(
                    f"this BEiT has {name}, but no {' and no '.join(missing)}: the file is not complete"
                )
            stacked[f"{layer}{middle}qkv.weight"] = torch.cat([tensors[other] for other in names])
    return stacked


def as_vlmo(tensors: Mapping[str, Tensor], text: int) -> dict[str, Tensor]:
    """Return the one bias table of VLMo, for texts of up to ``text`` tokens, in the place of BEiT's.

    Tables of the layers stand side by side; one that all layers share is repeated. Rows of texts are zero, and so are
    the types of text and image, so that images are seen exactly as by BEiT.
    """
    left = {name: tensor for name, tensor in tensors.items() if not name.startswith("bias.")}
    types = torch.zeros(2, tensors["model.patches.class_token"].shape[-1])
    if table := _table(tensors, count(tensors, "model.blocks.")):
        rows = torch.zeros(2 * text + 2, sum(part.shape[1] for part in table), dtype=table[0].dtype)
        left["model.relative_bias.table"] = torch.cat([torch.cat(table, dim=1), rows])
    return left | {"model.types.weight": types}


def window(rows: int) -> int:
    """Return the side of the square grid of a bias table of (2g - 1)^2 + 3 ``rows``; ``DualfuseError`` for no square."""
    across = math.isqrt(max(0, rows - 3))
    if not across % 2 or across**2 != rows - 3:
        raise DualfuseError(f"BEiT's relative_position_bias_table has {rows} rows, which fits no square image")
    return (across + 1) // 2


def copied_to_language(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the language experts that are copies of the vision experts; the official code leaves them random."""
    return {
        name.replace(".experts.image.", ".experts.text."): tensor.clone()
        for name, tensor in tensors.items()
        if ".experts.image." in name
    }


def _table(tensors: Mapping[str, Tensor], depth: int) -> list[Tensor]:
    """Return the bias tables of all layers, none if there are none."""
    if SHARED in tensors:
        return [tensors[SHARED]] * depth
    names = [OF_LAYER.format(layer) for layer in range(depth)]
    found = [tensors[name] for name in names if name in tensors]
    if found and len(found) < depth:
        missing = next(layer for layer, name in enumerate(names) if name not in tensors)
        raise DualfuseError(f"layer {missing} of this BEiT has no relative_position_bias_table, but others have")
    return found
