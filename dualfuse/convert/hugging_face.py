"""Names of BridgeTower in Hugging Face's transformers, and ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dualfuse.convert import clip, roberta
from dualfuse.convert.cross import CONTRAST, CROSS, MATCH, WORDS
from dualfuse.convert.rename import Layout, Table, inside, inverse, rename, weight_and_bias

PREFIX = "bridgetower."
"""Of everything but the heads, in files of models that have heads; the bare BridgeTowerModel has none."""

_IMAGE = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positions",
    "embeddings.patch_embedding.weight": "projection.weight",
} | clip.ABOVE_PATCHES

_MODEL = (
    inside(_IMAGE, "vision_model.visual.", "model.image_tower.")
    | inside(roberta.TOWER, "text_model.", "model.text_tower.")
    | inside(CROSS, "", "model.")
)

_SCALES: Mapping[str, Table] = {
    "add": {},
    "scaled_add": {
        f"cross_modal_{modality}_link_tower.{{}}.scaled_factor": f"model.bridges.{modality}.{{}}.scale"
        for modality in ("text", "image")
    },
    "interpolate": {
        f"cross_modal_{modality}_link_tower.{{}}.beta": f"model.bridges.{modality}.{{}}.scale"
        for modality in ("text", "image")
    },
}
"""The number of a bridge, by the kind of bridge."""
BRIDGES = tuple(_SCALES)
"""Kinds of bridges that transformers has."""

_HEADS = WORDS | MATCH | CONTRAST | weight_and_bias({"itc_cross_modal_head.fc": "itc_heads.0.fused"})
_HEADS |= {"logit_scale": "itc_heads.0.logit_scale"}
_WITHOUT_AXES = ("logit_scale", ".scaled_factor", ".beta")


def layout(bridge: str, prefix: str = PREFIX) -> Layout:
    """Return the names in a file of models with heads, or of the bare model, whose ``prefix`` is empty."""
    return Layout(
        names=inside(_MODEL | dict(_SCALES[bridge]), prefix, "") | _HEADS,
        kept=inside(roberta.POOLER, prefix + "text_model.", ""),
        dropped=(
            f"{prefix}text_model.embeddings.position_ids",
            f"{prefix}vision_model.visual.embeddings.position_ids",
        ),
    )


def to_hugging_face(
    tensors: Mapping[str, Tensor], kept: Mapping[str, Tensor], *, bridge: str, prefix: str = PREFIX
) -> dict[str, Tensor]:
    """Return our tensors, and those kept for this, the names and shapes of a file of transformers."""
    names = layout(bridge, prefix)
    renamed = rename(tensors, inverse(names.names)).tensors | rename(kept, inverse(names.kept)).tensors
    return {name: tensor.reshape(()) if name.endswith(_WITHOUT_AXES) else tensor for name, tensor in renamed.items()}
