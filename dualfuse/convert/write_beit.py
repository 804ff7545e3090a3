"""What a checkpoint of BEiT, fine-tuned on classes, holds for one of our models that tells pictures apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dualfuse.convert.beit import OF_LAYER, classes
from dualfuse.convert.build import Converted
from dualfuse.convert.rename import inverse, rename
from dualfuse.convert.report import Report, shapes
from dualfuse.layers.relative_bias import image_index, of_pictures
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.image_classes import ImageClasses

FILE = "beit.pth"
TABLE, TYPES = "model.relative_bias.table", "model.types.weight"
CLASS_TOKEN, PATCHES = "model.patches.class_token", "model.patches.projection.bias"
INDEX = "blocks.{}.attn.relative_position_index"


@dataclass(frozen=True)
class BeitFile:
    """The tensors of the official file, under its key "model", and what became of ours."""

    tensors: dict[str, Tensor]
    report: Report


def write_beit(converted: Converted) -> BeitFile:
    """Gives the tensors under the names of microsoft/unilm; ``ValueError`` says what of the model BEiT does not have.

    What serves texts is left out. The type of pictures goes into class token and patches; where it is zero, as in a
    BEiT that was converted, everything else stays bit for bit.
    """
    model, task = converted.recipe.model, converted.task
    if not isinstance(model, VLMoConfig) or not isinstance(task, ImageClasses):
        raise ValueError(f"BEiT tells classes of pictures apart, as a VLMo for them; this is a {type(task).__name__}")
    _refuse(model)
    ours = task.state_dict()
    made = _without_types(ours) | _tables(ours, model)
    renamed = rename(made, inverse(classes()))
    left_out = set(renamed.unknown)
    theirs = renamed.tensors
    if task.features == "patches":  # where the mean is taken of what no norm has passed
        theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("norm.")}
        left_out |= {"model.norm.weight", "model.norm.bias"}
    new = {}
    if model.positions == "relative":
        index = image_index((model.image_size[0] // model.patch, model.image_size[1] // model.patch))
        new = {INDEX.format(layer): index.clone() for layer in range(model.depth)}
    report = Report(
        converted.report.source,
        used=shapes({name: tensor for name, tensor in ours.items() if name not in left_out}),
        unused=shapes({name: ours[name] for name in left_out}),
        new=shapes(new),
    )
    return BeitFile(theirs | new, report)


def _refuse(model: VLMoConfig) -> None:
    reasons = {
        "experts that all modalities share": model.experts == "shared",
        "layers with an attention of each modality": model.separate_until > 0,
        "convolutional stem": model.stem != "linear",
        "mean bias for all layers": model.bias == "alike",
        "pictures that are not square": model.image_size[0] != model.image_size[1],
    }
    if impossible := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(f"the official BEiT has no {', no '.join(impossible)}: this model cannot be written for it")


def _without_types(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kind, rest = ours[TYPES][1], {name: tensor for name, tensor in ours.items() if name not in (TYPES, TABLE)}
    if kind.any():
        rest |= {name: ours[name] + kind for name in (CLASS_TOKEN, PATCHES)}
    return rest


def _tables(ours: Mapping[str, Tensor], model: VLMoConfig) -> dict[str, Tensor]:
    """Gives the bias table of each layer, of pictures alone; none beside absolute positions."""
    if TABLE not in ours:
        return {}
    side = model.image_size[0] // model.patch
    layers = ours[TABLE][: of_pictures((side, side))].chunk(model.depth, dim=1)
    return {OF_LAYER.format(layer): table.clone() for layer, table in enumerate(layers)}
