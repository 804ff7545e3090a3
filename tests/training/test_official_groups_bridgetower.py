"""Decay and learning rates of BridgeTower's parameters, against the six groups of the official code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from official_bridgetower import OFFICIAL

from dualfuse.convert.formats import bridgetower_official
from dualfuse.convert.rename import rename
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.recipe import Optim
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.training.optim import build_optimizer, learning_rate, set_learning_rate

GOLDEN = Path(__file__).parents[1] / "golden" / "bridgetower_official"
RECORDED = {"lr": 1e-5, "weight_decay": 0.01, "head_lr_mult": 50.0, "fusion_lr_mult": 5.0}


def test_official_code_has_six_groups() -> None:
    task = PairsConfig(itc_head=ITCHeadConfig(width=24, bias=True, temperature="plain")).build(OFFICIAL.build())
    optim = Optim(**RECORDED, decay_rule="official", schedule="constant")  # type: ignore[arg-type]
    optimizer = build_optimizer(task, optim)
    set_learning_rate(optimizer, learning_rate(optim, 0, 1))
    ours = {
        name: (pytest.approx(group["lr"]), group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["names"]
    }
    theirs = {}
    for group in json.loads((GOLDEN / "optimizer_groups.json").read_text()):
        renamed = rename(dict.fromkeys(group["params"], torch.zeros(1)), bridgetower_official.PAIRS.layout.names)
        theirs |= dict.fromkeys(renamed.tensors, (group["lr"], group["weight_decay"]))
    assert len(theirs) > 250 and theirs == ours
