"""Names of the official BridgeTower and METER checkpoints, by what they were trained for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dualfuse.convert import clip, roberta
from dualfuse.convert.cross import CONTRAST, CROSS, MATCH, WORDS
from dualfuse.convert.rename import Layout, Table, inside, inverse, rename, weight_and_bias
from dualfuse.errors import DualfuseError

MODEL = (
    inside(clip.TOWER, "vit_model.visual.", "model.image_tower.")
    | inside(roberta.TOWER, "text_transformer.", "model.text_tower.")
    | inside(CROSS, "", "model.")
    | weight_and_bias({"text_gate": "model.gates.text.gate", "image_gate": "model.gates.image.gate"})
)
"""Without heads; METER's files have only the gates more, and no bridges."""

_KEPT = inside(roberta.POOLER, "text_transformer.", "")
_DROPPED = (
    "text_transformer.embeddings.position_ids",
    "vit_model.positional_embedding",
    "vit_model.ln_final.*",
    "vit_model.token_embedding.weight",
    "vit_model.visual.proj",
)


def _classifier(theirs: str) -> Table:
    """Linear, LayerNorm, (GELU,) Linear."""
    return weight_and_bias({f"{theirs}.{place}": f"classifier.{place}" for place in (0, 1, 3)})


@dataclass(frozen=True)
class Kind:
    """What a checkpoint was trained for, told from its heads."""

    name: str
    mark: str
    """A name that only checkpoints of this kind hold."""
    heads: Table
    also_dropped: tuple[str, ...] = ()
    """Heads of an earlier stage that its task does not read."""

    @property
    def layout(self) -> Layout:
        """How its tensors are named."""
        return Layout(dict(MODEL) | dict(self.heads), _KEPT, _DROPPED + self.also_dropped)


_EARLIER = ("temperature", "itm_score.fc.*", "mlm_score.*", "itc_text_head.fc.*", "itc_image_head.fc.*")
_RANK = weight_and_bias({"rank_output": "itm_head"})  # one row: see from_official
PAIRS = Kind("pairs", "", WORDS | MATCH | CONTRAST | {"temperature": "itc_heads.0.temperature"})
"""Pre-training, and retrieval by contrast and matching."""
KINDS = (
    Kind("vqa", "vqa_classifier.0.weight", _classifier("vqa_classifier"), _EARLIER),
    Kind("nlvr2", "nlvr2_classifier.0.weight", _classifier("nlvr2_classifier"), _EARLIER),
    Kind("entailment", "snli_classifier.0.weight", _classifier("snli_classifier"), _EARLIER),
    Kind("ranking", "rank_output.weight", _RANK, _EARLIER),
)
"""Fine-tuned checkpoints."""


def kind_of(names: Collection[str]) -> Kind:
    """Return what a checkpoint with these tensors was trained for; ``DualfuseError`` if it is not one thing."""
    found = [kind for kind in KINDS if kind.mark in names]
    if len(found) > 1:
        heads = " and ".join(kind.mark.partition(".")[0] for kind in found)
        raise DualfuseError(f"this checkpoint has {heads}; a published one has a single task, so remove the others")
    return found[0] if found else PAIRS


def is_official(names: Collection[str]) -> bool:
    """Whether a state dict with these names comes from the official BridgeTower or METER code."""
    return "cross_modal_text_transform.weight" in names and any(name.startswith("vit_model.") for name in names)


def as_match_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the single row of ``rank_output`` into the head whose log-odds are that rank: a row of zeros above it."""
    rows = {name: tensors[name] for name in ("itm_head.weight", "itm_head.bias") if name in tensors}
    return dict(tensors) | {name: torch.cat([torch.zeros_like(row), row]) for name, row in rows.items()}


def as_rank_output(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`as_match_head`."""
    return dict(tensors) | {name: tensors[name][1:] for name in ("itm_head.weight", "itm_head.bias")}


def to_official(tensors: Mapping[str, Tensor], kept: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """Return our tensors, and those kept for this, the names and shapes of the official checkpoint."""
    ours = as_rank_output(tensors) if kind.name == "ranking" else tensors
    renamed = rename(ours, inverse(kind.layout.names)).tensors | rename(kept, inverse(kind.layout.kept)).tensors
    return {name: tensor.reshape(()) if name == "temperature" else tensor for name, tensor in renamed.items()}
