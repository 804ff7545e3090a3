"""The cross-modal part and the heads of BridgeTower, which its official files and Hugging Face's name alike."""

from __future__ import annotations

from dualfuse.convert.rename import inside, weight_and_bias
from dualfuse.convert.roberta import LAYER

_CROSS_LAYER = LAYER | weight_and_bias(
    {
        "crossattention.self.query": "cross_attention.query",
        "crossattention.self.key": "cross_attention.key",
        "crossattention.self.value": "cross_attention.value",
        "crossattention.output.dense": "cross_attention.projection",
        "crossattention.output.LayerNorm": "cross_norm",
    }
)


def _of(modality: str) -> dict[str, str]:
    theirs = f"cross_modal_{modality}_"
    return weight_and_bias(
        {
            f"{theirs}transform": f"transforms.{modality}",
            f"{theirs}transform.{{}}": f"transforms.{modality}.{{}}",
            f"{theirs}layernorm": f"first_norms.{modality}",
            f"{theirs}link_tower.{{}}.LayerNorm": f"bridges.{modality}.{{}}.norm",
            f"{theirs}pooler.dense": f"poolers.{modality}",
        }
    ) | inside(_CROSS_LAYER, f"{theirs}layers.{{}}.", f"layers.{modality}.{{}}.")


CROSS = {"token_type_embeddings.weight": "types.weight"} | _of("text") | _of("image")
"""All between the towers and the heads."""

WORDS = weight_and_bias(
    {"mlm_score.transform.dense": "mlm_head.dense", "mlm_score.transform.LayerNorm": "mlm_head.norm"}
)
WORDS |= {"mlm_score.decoder.weight": "mlm_head.decoder.weight", "mlm_score.bias": "mlm_head.decoder.bias"}
"""Masked words."""

MATCH = weight_and_bias({"itm_score.fc": "itm_head"})
"""Match or no match."""

CONTRAST = weight_and_bias({"itc_text_head.fc": "itc_heads.0.text", "itc_image_head.fc": "itc_heads.0.image"})
"""Contrastive itc_heads."""
