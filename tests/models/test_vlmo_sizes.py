"""The numbers of parameters of the published sizes, counted on the meta device."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import nn

from dualfuse.models.vlmo import VLMo, VLMoConfig
from dualfuse.recipes.vlmo import BASE, BASE_PLUS, LARGE
from dualfuse.tasks.pretrain.pairs import PairsConfig


def millions(modules: Iterable[nn.Module]) -> float:
    return sum(parameter.numel() for module in modules for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("cfg", "readme", "backbone", "vl_experts", "pretraining"),
    [
        pytest.param(BASE, 175, 175.4, 9.45, 202.4, id="base"),
        pytest.param(BASE_PLUS, 167, 166.6, 7.11, 185.0, id="base_plus"),
        pytest.param(LARGE, 562, 561.5, 25.19, 599.1, id="large"),
    ],
)
def test_parameters_of_the_published_sizes(
    cfg: VLMoConfig, readme: int, backbone: float, vl_experts: float, pretraining: float
) -> None:
    """Counted on the official code, whose figures exclude all heads, the pooler among them.

    With relative positions its base and large also hold 40 absolute text positions that nothing reads (0.03 and 0.04
    million); ours do not, and the rounded figures are the same.
    """
    with torch.device("meta"):
        model: VLMo = cfg.build()
        task = PairsConfig().build(model)
    without_head = millions([model]) - millions([model.pooler])
    assert round(without_head, 1) == backbone
    assert abs(without_head - readme) < 0.6
    assert round(millions([task]), 1) == pretraining
    experts = [block.experts["vl"] for block in model.blocks if "vl" in block.experts]
    assert len(experts) == cfg.depth - cfg.vl_expert_start
    assert round(millions(experts), 2) == vl_experts
