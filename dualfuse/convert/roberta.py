"""RoBERTa in the layout of Hugging Face, for the text tower; its layers are also those of the cross-modal part."""

from __future__ import annotations

from dualfuse.convert.rename import Layout, inside, weight_and_bias

LAYER = weight_and_bias(
    {
        "attention.self.query": "attention.query",
        "attention.self.key": "attention.key",
        "attention.self.value": "attention.value",
        "attention.output.dense": "attention.projection",
        "attention.output.LayerNorm": "attention_norm",
        "intermediate.dense": "up",
        "output.dense": "down",
        "output.LayerNorm": "norm",
    }
)
"""One post-norm layer."""

TOWER = (
    {
        "embeddings.word_embeddings.weight": "words.word.weight",
        "embeddings.position_embeddings.weight": "words.position.weight",
        "embeddings.token_type_embeddings.weight": "words.token_type.weight",
    }
    | weight_and_bias({"embeddings.LayerNorm": "words.norm"})
    | inside(LAYER, "encoder.layer.{}.", "layers.{}.")
)
"""The text tower."""

POOLER = weight_and_bias({"pooler.dense": "text_pooler"})
"""Computed by nobody, but part of the files."""

_WORD_HEAD = {
    "lm_head.dense.weight": "mlm_head.dense.weight",
    "lm_head.dense.bias": "mlm_head.dense.bias",
    "lm_head.layer_norm.weight": "mlm_head.norm.weight",
    "lm_head.layer_norm.bias": "mlm_head.norm.bias",
    "lm_head.bias": "mlm_head.decoder.bias",
}

WITH_HEAD = Layout(
    names=inside(TOWER, "roberta.", "model.text_tower.") | _WORD_HEAD,
    kept=inside(POOLER, "roberta.", ""),
    dropped=("roberta.embeddings.position_ids", "lm_head.decoder.bias", "lm_head.decoder.weight"),
)
"""Files of RobertaForMaskedLM. Its decoder is the word embedding, and its second bias the first one."""

BARE = Layout(inside(TOWER, "", "model.text_tower."), POOLER, ("embeddings.position_ids",))
"""Files of RobertaModel."""
