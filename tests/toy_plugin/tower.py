"""A text tower for BridgeTower: word embeddings, and layers without attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dualfuse.models.towers.base import TextTowerConfig, Tower, TowerOutput


@dataclass(frozen=True)
class ToyTextConfig(TextTowerConfig):
    width: int = 64
    depth: int = 2
    vocab_size: int = 19
    text_length: int = 12

    def build(self, dropout: float) -> ToyTextTower:
        return ToyTextTower(self)


class ToyTextTower(Tower):
    def __init__(self, cfg: ToyTextConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(cfg.vocab_size, cfg.width)
        self.layers = nn.ModuleList(nn.Linear(cfg.width, cfg.width) for _ in range(cfg.depth))

    def forward(self, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> TowerOutput:
        x, states = self.words(ids), list[Tensor]()
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        return TowerOutput(tuple(states[number] for number in layers))

    def fsdp_blocks(self) -> Sequence[nn.Module]:
        return list(self.layers)
