"""Weight initialization of models."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn

from dualfuse.layers.attention import SelfAttention
from dualfuse.layers.blocks import SHARED, Block
from dualfuse.layers.embeddings import PatchEmbedding

IMAGE = "image"


def init_weights(model: nn.Module, std: float) -> None:
    """Draw linear weights from a truncated normal of ``std``, embeddings from a normal of 0.02; biases are 0.

    Convolutions keep torch's default.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, PatchEmbedding):
            nn.init.trunc_normal_(module.class_token, std=0.02)
            if module.window is not None:
                nn.init.trunc_normal_(module.position, std=0.02)


def init_normal(model: nn.Module, std: float) -> None:
    """Draw linear weights from a normal of ``std``, embeddings from one of 0.02; biases are 0, other modules stay."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


def init_weights_as_beit(patches: PatchEmbedding, blocks: Iterable[nn.Module], std: float) -> None:
    """Draw the weights that images use from a normal truncated at one ``std``, as BEiT does.

    Output projections of layer n (from 1) are divided by sqrt(2 n).
    """
    for parameter in patches.parameters(recurse=False):  # class token and positions
        nn.init.trunc_normal_(parameter, std=std, a=-std, b=std)
    _truncate_at_one_std(patches, std)
    for number, block in enumerate(blocks, start=1):
        assert isinstance(block, Block)
        expert = block.experts[IMAGE if IMAGE in block.experts else SHARED]
        for part in (*block.attention.values(), expert):
            _truncate_at_one_std(part, std)
            output = part.projection if isinstance(part, SelfAttention) else part.get_submodule("down")
            output.get_parameter("weight").data /= math.sqrt(2 * number)


def _truncate_at_one_std(part: nn.Module, std: float) -> None:
    for module in part.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=std, a=-std, b=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
