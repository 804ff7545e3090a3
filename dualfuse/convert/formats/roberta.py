"""RoBERTa in Hugging Face's layout: the text tower; its layers are also those of the cross-modal part."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dualfuse.convert.rename import ImportedTensors, Layout, add_prefixes, import_tensors, weight_and_bias

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
    | add_prefixes(LAYER, "encoder.layer.{}.", "layers.{}.")
)
POOLER = weight_and_bias({"pooler.dense": "text_pooler"})
"""Part of the files, but never read by BridgeTower."""

_MLM = weight_and_bias({"lm_head.dense": "mlm_head.dense", "lm_head.layer_norm": "mlm_head.norm"})
_MLM |= {"lm_head.bias": "mlm_head.decoder.bias"}

WITH_HEAD = Layout(
    names=add_prefixes(TOWER, "roberta.", "model.text_tower.") | _MLM,
    kept=add_prefixes(POOLER, "roberta.", ""),
    unused=("roberta.embeddings.position_ids", "lm_head.decoder.bias", "lm_head.decoder.weight"),
)
"""Files of RobertaForMaskedLM. Its decoder is tied to the word embedding, and its second bias to the first."""
BARE = Layout(add_prefixes(TOWER, "", "model.text_tower."), POOLER, ("embeddings.position_ids",))
"""Files of RobertaModel."""


def import_roberta(tensors: Mapping[str, Tensor]) -> ImportedTensors:
    """Return the tensors of a RoBERTa under the names of the text tower and the MLM head."""
    imported = import_tensors(tensors, WITH_HEAD if any(name.startswith("roberta.") for name in tensors) else BARE)
    if "mlm_head.dense.weight" in imported.tensors:  # the decoder is tied
        imported.tensors["mlm_head.decoder.weight"] = imported.tensors["model.text_tower.words.word.weight"]
    return imported
