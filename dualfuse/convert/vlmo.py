"""Names of the official VLMo checkpoints (microsoft/unilm, vlmo) and ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dualfuse.convert.rename import Renamed, Table, inverse, rename

_EXPERTS = {"text": "text", "imag": "image", "vl": "both"}

MODEL: Table = {
    "text_embeddings.word_embeddings.weight": "model.words.word.weight",
    "text_embeddings.token_type_embeddings.weight": "model.words.token_type.weight",
    "text_embeddings.position_embeddings.weight": "model.words.position.weight",
    "text_embeddings.LayerNorm.weight": "model.words.norm.weight",
    "text_embeddings.LayerNorm.bias": "model.words.norm.bias",
    "token_type_embeddings.weight": "model.types.weight",
    "relative_position_bias_table": "model.relative_bias.table",
    "transformer.cls_token": "model.patches.class_token",
    "transformer.pos_embed": "model.patches.position",
    "transformer.patch_embed.proj.weight": "model.patches.projection.weight",
    "transformer.patch_embed.proj.bias": "model.patches.projection.bias",
    "transformer.norm.weight": "model.norm.weight",
    "transformer.norm.bias": "model.norm.bias",
    "transformer.blocks.{}.norm1.weight": "model.blocks.{}.norm.weight",
    "transformer.blocks.{}.norm1.bias": "model.blocks.{}.norm.bias",
    "transformer.blocks.{}.gamma_1": "model.blocks.{}.scale_1.weight",
    "transformer.blocks.{}.gamma_2": "model.blocks.{}.scale_2.weight",
    "transformer.blocks.{}.attn.qkv.weight": "model.blocks.{}.attention.shared.qkv.weight",
    "transformer.blocks.{}.attn.q_bias": "model.blocks.{}.attention.shared.q_bias",
    "transformer.blocks.{}.attn.v_bias": "model.blocks.{}.attention.shared.v_bias",
    "transformer.blocks.{}.attn.proj.weight": "model.blocks.{}.attention.shared.projection.weight",
    "transformer.blocks.{}.attn.proj.bias": "model.blocks.{}.attention.shared.projection.bias",
    **{
        f"transformer.blocks.{{}}.{theirs}_{name}{part}.{kind}": f"model.blocks.{{}}.experts.{expert}.{ours}.{kind}"
        for name, expert in _EXPERTS.items()
        for theirs, part, ours in (("norm2", "", "norm"), ("mlp", ".fc1", "up"), ("mlp", ".fc2", "down"))
        for kind in ("weight", "bias")
    },
    "pooler.dense.weight": "model.pooler.weight",
    "pooler.dense.bias": "model.pooler.bias",
}

PAIRS: Table = MODEL | {
    "mlm_score.transform.dense.weight": "word_head.dense.weight",
    "mlm_score.transform.dense.bias": "word_head.dense.bias",
    "mlm_score.transform.LayerNorm.weight": "word_head.norm.weight",
    "mlm_score.transform.LayerNorm.bias": "word_head.norm.bias",
    "mlm_score.decoder.weight": "word_head.decoder.weight",
    "mlm_score.bias": "word_head.decoder.bias",
    "itm_score.fc.weight": "match_head.weight",
    "itm_score.fc.bias": "match_head.bias",
    "itc_image_proj.fc.weight": "projections.0.image.weight",
    "itc_text_proj.fc.weight": "projections.0.text.weight",
    "itc_vl_image_proj.fc.weight": "projections.1.image.weight",
    "itc_vl_text_proj.fc.weight": "projections.1.text.weight",
    "logit_scale": "projections.0.log_scale",
    "logit_vl_scale": "projections.1.log_scale",
}


def from_official(tensors: Mapping[str, Tensor]) -> Renamed:
    """Gives the tensors of a pre-training checkpoint under the names of our ``Pairs`` task."""
    renamed = rename(tensors, PAIRS)
    if "model.relative_bias.table" in renamed.tensors:
        # stored beside the relative bias, but no part of the released forward pass
        renamed.tensors.pop("model.words.position.weight", None)
    for name, tensor in renamed.tensors.items():
        if name.endswith(".log_scale"):
            renamed.tensors[name] = tensor.reshape(1)
    return renamed


def to_official_names(names: Mapping[str, Tensor]) -> Renamed:
    """Gives our tensors the names of the official pre-training checkpoint."""
    return rename(names, inverse(PAIRS))
