"""A tower of another family: its own config and module are all that BridgeTower needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from tiny import BRIDGETOWER
from torch import Tensor, nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention_flow import AttentionFlow, rollout
from dualfuse.models.towers.base import ImageTowerConfig, Tower, TowerOutput
from dualfuse.testing import check_model


@dataclass(frozen=True)
class MixerConfig(ImageTowerConfig):
    """A tower of linear layers."""

    width: int = 64
    depth: int = 2
    image_size: tuple[int, int] = (32, 32)

    def build(self) -> Mixer:
        return Mixer(self)


class Mixer(Tower):
    """Each layer adds the mean over tokens to each token; the pooled state is the mean of the top layer."""

    def __init__(self, cfg: MixerConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, cfg.width, 8, stride=8)
        self.layers = nn.ModuleList(nn.Linear(cfg.width, cfg.width) for _ in range(cfg.depth))

    def forward(self, images: Tensor, layers: Sequence[int]) -> TowerOutput:
        maps = self.projection(images)
        patches = maps.flatten(2).transpose(1, 2)
        x, states = torch.cat([patches.mean(1, keepdim=True), patches], dim=1), []
        for layer in self.layers:
            x = x + layer(x.mean(1, keepdim=True) + x).tanh()
            states.append(x)
        return TowerOutput(tuple(states[number] for number in layers), tuple(maps.shape[2:]))

    def fsdp_blocks(self) -> Sequence[nn.Module]:
        return list(self.layers)

    def pooled(self, top: Tensor) -> Tensor:
        return top.mean(1)


def test_it_meets_the_contract() -> None:
    check_model(replace(BRIDGETOWER, image=MixerConfig()))
    deeper = replace(BRIDGETOWER, image=MixerConfig(depth=3), text=replace(BRIDGETOWER.text, depth=3))
    check_model(replace(deeper, bridge="none", all_layers=True))


def test_its_layers_have_learning_rate_levels() -> None:
    model = replace(BRIDGETOWER, image=MixerConfig(depth=3)).build()
    levels = list(model.lr_layers())
    assert [set(model.image_tower.layers).intersection(level) for level in levels[1:4]] == [
        {layer} for layer in model.image_tower.layers
    ]


def test_its_attention_cannot_be_explained() -> None:
    model, identity = replace(BRIDGETOWER, image=MixerConfig()).build(), torch.eye(3)
    flow = AttentionFlow(lambda _: torch.eye(1), rollout)
    with pytest.raises(DualfuseError, match="Mixer does not define attention_flow"):
        model.attention_flow(flow, identity[:1], identity[1:])
