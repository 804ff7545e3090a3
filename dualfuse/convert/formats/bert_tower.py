"""BERT and encoders in its layout, such as MiniLM, in Hugging Face's files: the text tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dualfuse.convert.formats.dual_encoder import FIELDS
from dualfuse.convert.formats.roberta import TOWER
from dualfuse.convert.rename import ImportedTensors, Layout, add_prefixes, import_tensors
from dualfuse.errors import DualfuseError
from dualfuse.models.towers.bert import BertConfig

WORDS, TYPES = "model.text_tower.words.word.weight", "model.text_tower.words.token_type.weight"
EXPECTED = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, "position_embedding_type": "absolute"}
"""Values of config.json that the tower is built for."""
_UNUSED = ("pooler.*", "embeddings.position_ids", "cls.*")


def tower_config(config: Mapping[str, Any], name: object) -> BertConfig:  # Any: whatever JSON holds
    """Return the sizes in a config.json; raises DualfuseError for another model, or for one that is not supported."""
    for key, value in EXPECTED.items():
        if config.get(key, value) != value:
            raise DualfuseError(f"{name} has {key} {config[key]!r}; a text tower in BERT's layout has {value!r}")
    fields = {ours: theirs for ours, theirs in FIELDS.items() if ours not in ("layer_norm_eps", "patch_size")}
    if missing := [key for key in fields.values() if not isinstance(config.get(key), int)]:
        raise DualfuseError(f"{name} has no number {' and no '.join(missing)}")
    return BertConfig(**{ours: config[theirs] for ours, theirs in fields.items()})


def import_bert_tower(tensors: Mapping[str, Tensor]) -> ImportedTensors:
    """Return the tensors of a BERT under the names of the text tower.

    The pooler and the heads are unused, and of the token types only that of a first sentence is used.
    """
    prefix = "bert." if any(name.startswith("bert.") for name in tensors) else ""
    names = add_prefixes(TOWER, prefix, "model.text_tower.")
    unused = (*(prefix + name for name in _UNUSED), "cls.*")
    imported = import_tensors(tensors, Layout(names, unused=unused))
    if TYPES in imported.tensors:
        imported.tensors[TYPES] = imported.tensors[TYPES][:1].clone()
    return imported
