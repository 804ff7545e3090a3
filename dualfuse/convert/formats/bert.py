"""BERT (arXiv 1810.04805) in Hugging Face's layout: initial values for VLMo's language experts.

A language expert takes the feed-forward part of a layer and the norm before it, which in BERT follows the attention.
BERT's attention has no counterpart: VLMo's is shared by text and images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from dualfuse.convert.rename import ImportedTensors, Layout, add_prefixes, import_tensors, weight_and_bias
from dualfuse.errors import DualfuseError

PREFIX = "bert."
"""Prefix of all but the heads, in files of models with heads."""
_POSITIONS = "embeddings.position_embeddings.weight"
_LAYER = weight_and_bias({"attention.output.LayerNorm": "norm", "intermediate.dense": "up", "output.dense": "down"})
_ENCODER = (
    {
        "embeddings.word_embeddings.weight": "model.words.word.weight",
        "embeddings.token_type_embeddings.weight": "model.words.token_type.weight",
        _POSITIONS: "model.words.position.weight",
    }
    | weight_and_bias({"embeddings.LayerNorm": "model.words.norm"})
    | add_prefixes(_LAYER, "encoder.layer.{}.", "model.blocks.{}.experts.text.")
)
_HEAD = weight_and_bias(
    {
        "cls.predictions.transform.dense": "mlm_head.dense",
        "cls.predictions.transform.LayerNorm": "mlm_head.norm",
        "cls.predictions.decoder": "mlm_head.decoder",
    }
)
_UNUSED = ("encoder.layer.*.attention.*", "encoder.layer.*.output.LayerNorm.*", "pooler.*", "embeddings.position_ids")


def import_bert(
    tensors: Mapping[str, Tensor], *, depth: int, width: int, text_length: int, relative: bool
) -> ImportedTensors:
    """Return the tensors of a BERT under the names of a VLMo of the given sizes.

    Layers above ``depth``, and the word positions if VLMo has ``relative`` ones, are unused. Raises ``DualfuseError``
    if this is not a BERT, or one of another width.
    """
    renamed = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
        for name, tensor in tensors.items()  # the first BERT files have gamma and beta
    }
    prefix = PREFIX if any(name.startswith(PREFIX) for name in renamed) else ""
    unused = (*(prefix + name for name in _UNUSED), "cls.seq_relationship.*", "cls.predictions.bias")
    names = add_prefixes(_ENCODER, prefix, "") | _HEAD
    if relative:
        del names[prefix + _POSITIONS]
        unused = (*unused, prefix + _POSITIONS)
    above = {name: tensor for name, tensor in renamed.items() if _layer(name.removeprefix(prefix)) >= depth}
    below = {name: tensor for name, tensor in renamed.items() if name not in above}
    imported = import_tensors(below, Layout(names, unused=unused))
    imported.unused.update(above)
    if (words := imported.tensors.get("model.words.word.weight")) is None:
        raise DualfuseError(f"this is not a BERT of Hugging Face: its tensors include {', '.join(list(tensors)[:4])}")
    if words.shape[1] != width:
        raise DualfuseError(
            f"BERT is {words.shape[1]} wide and BEiT {width}: language experts and vision experts need the same width. "
            "Choose a pair of one size: base with base, large with large"
        )
    if "mlm_head.dense.weight" in imported.tensors:  # files may lack what is tied
        imported.tensors.setdefault("mlm_head.decoder.weight", words.clone())
        if (bias := renamed.get("cls.predictions.bias")) is not None:
            imported.tensors.setdefault("mlm_head.decoder.bias", bias)
    if (positions := imported.tensors.get("model.words.position.weight")) is not None:
        imported.tensors["model.words.position.weight"] = positions[:text_length]
    return imported


def _layer(name: str) -> int:
    """Return the index of the layer that a tensor belongs to; -1 for none."""
    index = re.match(r"encoder\.layer\.(\d+)\.", name)
    return int(index[1]) if index else -1
