"""Names of the official VLMo checkpoints (microsoft/unilm, vlmo), by what they were trained for, and ours."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from torch import Tensor

from dualfuse.convert.rename import Layout, Table, inverse, rename, weight_and_bias
from dualfuse.errors import DualfuseError

Kind = Literal["text", "pairs", "vqa", "nlvr2"]
"""What a checkpoint was trained for: stage two; stage three or retrieval; and tasks with a head of their own."""
FINE_TUNED: tuple[Kind, ...] = ("vqa", "nlvr2")


_EXPERTS = {"text": "text", "imag": "image", "vl": "vl"}

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
    "mlm_score.transform.dense.weight": "mlm_head.dense.weight",
    "mlm_score.transform.dense.bias": "mlm_head.dense.bias",
    "mlm_score.transform.LayerNorm.weight": "mlm_head.norm.weight",
    "mlm_score.transform.LayerNorm.bias": "mlm_head.norm.bias",
    "mlm_score.decoder.weight": "mlm_head.decoder.weight",
    "mlm_score.bias": "mlm_head.decoder.bias",
    "itm_score.fc.weight": "itm_head.weight",
    "itm_score.fc.bias": "itm_head.bias",
    "itc_image_proj.fc.weight": "itc_heads.0.image.weight",
    "itc_text_proj.fc.weight": "itc_heads.0.text.weight",
    "itc_vl_image_proj.fc.weight": "itc_heads.1.image.weight",
    "itc_vl_text_proj.fc.weight": "itc_heads.1.text.weight",
    "logit_scale": "itc_heads.0.logit_scale",
    "logit_vl_scale": "itc_heads.1.logit_scale",
}

WORD_POSITIONS = "text_embeddings.position_embeddings.weight"
POSITION_NUMBERS = "text_embeddings.position_ids"
INDICES = ("relative_position_index", "text_relative_position_index", "text_imag_relative_position_index")
"""Rows of the bias table for images, texts and pairs; the released loader asks for them at another resolution."""

_KEPT: Table = {POSITION_NUMBERS: "position_numbers"} | {name: name for name in INDICES}
_NUMBERS = ("logit_scale", "logit_vl_scale")  # without axes
_EARLIER = ("mlm_score.*", "itm_score.*", "itc_*", *_NUMBERS)


def is_official(names: Collection[str]) -> bool:
    """Whether a state dict with these names comes from the official VLMo code."""
    return any(name.startswith("transformer.blocks.") and ".mlp_imag." in name for name in names)


def kind_of(names: Collection[str]) -> Kind:
    """Return what a checkpoint with these tensors was trained for; ``DualfuseError`` if it is not one thing."""
    found: list[Kind] = [kind for kind in FINE_TUNED if any(name.startswith(f"{kind}_classifier.") for name in names)]
    if len(found) > 1:
        raise DualfuseError(
            f"this checkpoint has {' and '.join(f'{kind}_classifier' for kind in found)}; a published one has a single "
            "task, so remove the others"
        )
    if found:
        return found[0]
    heads = {name.partition(".")[0] for name in names}
    return "text" if "mlm_score" in heads and not heads & {"itm_score", "itc_image_proj"} else "pairs"


def layout(kind: Kind, *, relative: bool) -> Layout:
    """Return the names in a checkpoint of that kind.

    With relative positions the absolute ones of words are stored too, but are no part of the released forward pass.
    """
    is_fine_tuned = kind in FINE_TUNED
    heads = {f"{kind}_classifier.{place}": f"classifier.{place}" for place in (0, 1, 3)} if is_fine_tuned else {}
    names = dict(MODEL) | weight_and_bias(heads) if is_fine_tuned else dict(PAIRS)
    kept = dict(_KEPT)
    if relative:
        kept[WORD_POSITIONS] = "word_positions"
        del names[WORD_POSITIONS]
    return Layout(names, kept, _EARLIER if is_fine_tuned else ())


def to_official(
    tensors: Mapping[str, Tensor], kept: Mapping[str, Tensor], kind: Kind, *, relative: bool
) -> dict[str, Tensor]:
    """Return our tensors, and those kept for this, the names and shapes of the official checkpoint.

    Raises ``DualfuseError`` for tensors that it has no name for.
    """
    names = layout(kind, relative=relative)
    renamed = rename(tensors, inverse(names.names))
    if renamed.unknown:
        raise DualfuseError(f"the official layout has no name for {', '.join(renamed.unknown[:4])}")
    whole = renamed.tensors | rename(kept, inverse(names.kept)).tensors
    return {name: tensor.reshape(()) if name in _NUMBERS else tensor for name, tensor in whole.items()}
