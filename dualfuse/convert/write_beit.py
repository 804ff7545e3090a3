"""What a checkpoint of BEiT, fine-tuned on classes, holds for one of our models that tells images apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dualfuse.convert.beit import OF_LAYER, classes
from dualfuse.convert.build import Converted
from dualfuse.convert.rename import inverse, rename
from dualfuse.convert.report import Report, shapes
from dualfuse.errors import DualfuseError
from dualfuse.layers.relative_bias import image_index, of_images
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.finetune.image_classification import ImageClassification

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
    """Return the tensors under the names of microsoft/unilm; ``DualfuseError`` says what of the model BEiT does not have.

    What serves texts is left out. The type of images goes into class token and patches; where it is zero, as in a
    BEiT that was converted, everything else stays bit for bit.
    """
    model, task = converted.recipe.model, converted.task
    if not isinstance(model, VLMoConfig) or not isinstance(task, ImageClassification):
        raise DualfuseError(f"BEiT tells classes of images apart, as a VLMo for them; this is a {type(task).__name__}")
    _refuse(model)
    ours = task.state_dict()
    made = _without_types(ours) | _tables(ours, model)
    renamed = rename(made, inverse(classes()))
    skipped = set(renamed.unknown)
    theirs = renamed.tensors
    if task.features == "patches":  # where the mean is taken of what no norm has passed
        theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("norm.")}
        skipped |= {"model.norm.weight", "model.norm.bias"}
    new = {}
    if model.positions == "relative":
        index = image_index((model.image_size[0] // model.patch_size, model.image_size[1] // model.patch_size))
        new = {INDEX.format(layer): index.clone() for layer in range(model.depth)}
    report = Report(
        converted.report.source,
        used=shapes({name: tensor for name, tensor in ours.items() if name not in skipped}),
        unused=shapes({name: ours[name] for name in skipped}),
        new=shapes(new),
    )
    return BeitFile(theirs | new, report)


def _refuse(model: VLMoConfig) -> None:
    reasons = {
        "experts that all modalities share": model.experts == "shared",
        "layers with an attention of each modality": model.separate_attention_until > 0,
        "convolutional stem": model.stem != "linear",
        "mean bias for all layers": model.share_relative_bias,
        "images that are not square": model.image_size[0] != model.image_size[1],
    }
    if impossible := [reason for reason, holds in reasons.items() if holds]:
        raise DualfuseError(f"the official BEiT has no {', no '.join(impossible)}: this model cannot be written for it")


def _without_types(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kind, rest = ours[TYPES][1], {name: tensor for name, tensor in ours.items() if name not in (TYPES, TABLE)}
    if kind.any():
        rest |= {name: ours[name] + kind for name in (CLASS_TOKEN, PATCHES)}
    return rest


def _tables(ours: Mapping[str, Tensor], model: VLMoConfig) -> dict[str, Tensor]:
    """Return the bias table of each layer, of images alone; none beside absolute positions."""
    if TABLE not in ours:
        return {}
    side = model.image_size[0] // model.patch_size
    layers = ours[TABLE][: of_images((side, side))].chunk(model.depth, dim=1)
    return {OF_LAYER.format(layer): table.clone() for layer, table in enumerate(layers)}
