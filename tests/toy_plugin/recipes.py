"""A recipe of the toy task on the toy model, and one of pairs on a BridgeTower with the toy tower."""

from __future__ import annotations

from dualfuse import BridgeTowerConfig, CLIPViTConfig, Data, Optim, PairsConfig, Recipe, Run
from toy_plugin.model import ToyModelConfig
from toy_plugin.task import ToyTaskConfig
from toy_plugin.tower import ToyTextConfig

RUN = Run(steps=2, log_every=1)
OPTIM = Optim(lr=1e-3)


def data(tokenizer: str) -> Data:
    return Data(image_size=(32, 32), text_length=12, tokenizer=tokenizer, batch_size=4, num_workers=0)


def toy(tokenizer: str = "") -> Recipe:
    """Train averages of patches and words."""
    return Recipe("toy", ToyModelConfig(), ToyTaskConfig(), data(tokenizer), OPTIM, RUN)


def bridge() -> Recipe:
    """Train a BridgeTower whose text tower has no attention."""
    model = BridgeTowerConfig(
        image=CLIPViTConfig(width=64, depth=2, patch_size=8, image_size=(32, 32)),
        text=ToyTextConfig(),
        width=32,
        heads=2,
        feed_forward=64,
        layers=2,
    )
    return Recipe("bridge", model, PairsConfig(), data(""), OPTIM, RUN)
