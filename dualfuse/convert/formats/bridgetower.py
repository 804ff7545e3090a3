"""Names of BridgeTower's cross-modal part and heads, which the official files and Hugging Face share."""

from __future__ import annotations

from dualfuse.convert.formats.roberta import LAYER
from dualfuse.convert.rename import add_prefixes, weight_and_bias
from dualfuse.errors import DualfuseError
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig
from dualfuse.recipe import Optim

OPTIM = Optim(lr=1e-5, warmup=0.1, head_lr_mult=5.0, fusion_lr_mult=5.0)
"""Optimizer settings of a converted checkpoint: BridgeTower's learning rates for retrieval."""

_CROSS_LAYER = LAYER | weight_and_bias(
    {
        "crossattention.self.query": "cross_attention.query",
        "crossattention.self.key": "cross_attention.key",
        "crossattention.self.value": "cross_attention.value",
        "crossattention.output.dense": "cross_attention.projection",
        "crossattention.output.LayerNorm": "cross_norm",
    }
)


def _modality(modality: str) -> dict[str, str]:
    prefix = f"cross_modal_{modality}_"
    return weight_and_bias(
        {
            f"{prefix}transform": f"transforms.{modality}",
            f"{prefix}transform.{{}}": f"transforms.{modality}.{{}}",
            f"{prefix}layernorm": f"first_norms.{modality}",
            f"{prefix}link_tower.{{}}.LayerNorm": f"bridges.{modality}.{{}}.norm",
            f"{prefix}pooler.dense": f"poolers.{modality}",
        }
    ) | add_prefixes(_CROSS_LAYER, f"{prefix}layers.{{}}.", f"layers.{modality}.{{}}.")


CROSS_MODAL = {"token_type_embeddings.weight": "types.weight"} | _modality("text") | _modality("image")
"""Everything between the towers and the heads."""
MLM = {"mlm_score.decoder.weight": "mlm_head.decoder.weight", "mlm_score.bias": "mlm_head.decoder.bias"}
MLM |= weight_and_bias(
    {"mlm_score.transform.dense": "mlm_head.dense", "mlm_score.transform.LayerNorm": "mlm_head.norm"}
)
ITM = weight_and_bias({"itm_score.fc": "itm_head"})
ITC = weight_and_bias({"itc_text_head.fc": "itc_heads.0.text", "itc_image_head.fc": "itc_heads.0.image"})


def storable_towers(format_name: str, model: BridgeTowerConfig) -> tuple[CLIPViTConfig, RobertaConfig]:
    """Return the towers of a model; ``DualfuseError`` if they are not those of BridgeTower's files."""
    if not isinstance(model.image, CLIPViTConfig) or not isinstance(model.text, RobertaConfig):
        towers = f"{type(model.image).__name__} and {type(model.text).__name__}"
        raise DualfuseError(f"{format_name} has towers of CLIP and RoBERTa, not {towers}")
    return model.image, model.text
