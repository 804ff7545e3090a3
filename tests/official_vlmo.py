"""Single tensors of an official pre-training checkpoint of VLMo under our names, and back, through the same table."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dualfuse.convert.formats.vlmo_official import PAIRS
from dualfuse.convert.rename import Renamed, inverse, rename


def from_official(tensors: Mapping[str, Tensor]) -> Renamed:
    """Return the tensors of a pre-training checkpoint under the names of our ``Pairs`` task."""
    renamed = rename(tensors, PAIRS)
    if "model.relative_bias.table" in renamed.tensors:
        # stored beside the relative bias, but no part of the released forward pass
        renamed.tensors.pop("model.words.position.weight", None)
    for name, tensor in renamed.tensors.items():
        if name.endswith(".logit_scale"):
            renamed.tensors[name] = tensor.reshape(1)
    return renamed


def to_official_names(names: Mapping[str, Tensor]) -> Renamed:
    """Return our tensors the names of the official pre-training checkpoint."""
    return rename(names, inverse(PAIRS))
