"""BERT (arXiv 1810.04805) in the layout of Hugging Face: what VLMo's language experts may start from.

The words are BERT's alike. A language expert gets a layer's feed-forward part, and the norm in front of it, which in
BERT closes the attention. BERT's attention itself has no place: VLMo's is shared by texts and images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from dualfuse.convert.rename import Layout, Sorted, inside, sort, weight_and_bias
from dualfuse.errors import DualfuseError

_POSITIONS = "embeddings.position_embeddings.weight"
_WORDS = {
    "embeddings.word_embeddings.weight": "model.words.word.weight",
    "embeddings.token_type_embeddings.weight": "model.words.token_type.weight",
    _POSITIONS: "model.words.position.weight",
} | weight_and_bias({"embeddings.LayerNorm": "model.words.norm"})
_LAYER = weight_and_bias({"attention.output.LayerNorm": "norm", "intermediate.dense": "up", "output.dense": "down"})
_TOWER = _WORDS | inside(_LAYER, "encoder.layer.{}.", "model.blocks.{}.experts.text.")
_HEAD = weight_and_bias(
    {
        "cls.predictions.transform.dense": "mlm_head.dense",
        "cls.predictions.transform.LayerNorm": "mlm_head.norm",
        "cls.predictions.decoder": "mlm_head.decoder",
    }
)
_DEAD = ("encoder.layer.*.attention.*", "encoder.layer.*.output.LayerNorm.*", "pooler.*", "embeddings.position_ids")
PREFIX = "bert."
"""Of everything but the heads, in files of Hugging Face's models that have heads."""


def sort_bert(tensors: Mapping[str, Tensor], *, depth: int, relative: bool) -> Sorted:
    """Return the tensors our names; ``DualfuseError`` for what is no BERT.

    Layers above ``depth``, and the positions of words where VLMo has ``relative`` ones, are left out.
    """
    new = {_new(name): tensor for name, tensor in tensors.items()}
    prefix = PREFIX if any(name.startswith(PREFIX) for name in new) else ""
    dead = (*(prefix + name for name in _DEAD), "cls.seq_relationship.*", "cls.predictions.bias")
    names = inside(_TOWER, prefix, "") | _HEAD
    if relative:
        del names[f"{prefix}{_POSITIONS}"]
        dead = (*dead, f"{prefix}{_POSITIONS}")
    above = {name: tensor for name, tensor in new.items() if _layer(name.removeprefix(prefix)) >= depth}
    found = sort({name: tensor for name, tensor in new.items() if name not in above}, Layout(names, {}, dead))
    found.unused.update(above)
    if "model.words.word.weight" not in found.tensors:
        raise DualfuseError(f"this is no BERT of Hugging Face: it holds tensors such as {', '.join(list(tensors)[:4])}")
    if "mlm_head.dense.weight" in found.tensors:  # files may leave out what is tied
        found.tensors.setdefault("mlm_head.decoder.weight", found.tensors["model.words.word.weight"].clone())
        if (bias := new.get("cls.predictions.bias")) is not None:
            found.tensors.setdefault("mlm_head.decoder.bias", bias)
    return found


def fitting(found: Sorted, *, width: int, text: int) -> dict[str, Tensor]:
    """Return the tensors for a VLMo of that width and for texts so long; ``DualfuseError`` if the widths differ."""
    words = found.tensors["model.words.word.weight"]
    if words.shape[1] != width:
        raise DualfuseError(
            f"BERT is {words.shape[1]} wide and BEiT {width}: language experts and vision experts work on vectors of "
            "one width. Choose a pair of one size: base with base, large with large"
        )
    return {
        name: tensor[:text] if name == "model.words.position.weight" else tensor
        for name, tensor in found.tensors.items()
    }


def _layer(name: str) -> int:
    """Return the number of the layer that a tensor belongs to; -1 for none."""
    number = re.match(r"encoder\.layer\.(\d+)\.", name)
    return int(number[1]) if number else -1


def _new(name: str) -> str:
    """Return today's name: the first files of BERT called weight and bias of a norm gamma and beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
