"""Which parameters are decayed, against the lists that the official code made for its own names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from official_vlmo import from_official

from dualfuse.models.vlmo import InitConfig, VLMoConfig
from dualfuse.recipe import Optim
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.training.optim import parameter_groups

FACTS = json.loads((Path(__file__).parents[1] / "golden" / "vlmo" / "facts.json").read_text())["facts"]
TINY = VLMoConfig(
    width=48, depth=4, heads=4, vl_expert_start=2, patch_size=8, image_size=(32, 32), vocab_size=101, text_length=20
)
CONFIGS = {
    "rel": TINY,
    "abs": VLMoConfig(**(vars(TINY) | {"positions": "absolute", "init": InitConfig(layer_scale=0.0)})),
}


@pytest.mark.parametrize("variant", [name for name in CONFIGS if "optimizer_groups" in FACTS[name]])
def test_groups_of_the_released_code(variant: str) -> None:
    decayed, spared, *heads = FACTS[variant]["optimizer_groups"]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    assert not any(group["names"] for group in heads)  # those of the fine-tuning heads with their own learning rate
    theirs = [from_official(dict.fromkeys(group["names"], torch.zeros(1))) for group in (decayed, spared)]
    assert [renamed.unknown for renamed in theirs] == [(), ()]
    with torch.device("meta"):
        task = PairsConfig().build(CONFIGS[variant].build())
    ours = parameter_groups(task, Optim(decay_rule="official", weight_decay=0.01))
    assert [group["weight_decay"] for group in ours] == [0.01, 0.0]
    unread = {"model.words.position.weight"} if variant == "rel" else set()  # beside the relative bias nothing reads it
    for group, renamed in zip(ours, theirs, strict=True):
        assert set(group["names"]) == set(renamed.tensors) - unread
        assert len(group["names"]) == len(group["params"])
    assert sum(len(group["names"]) for group in ours) == len(list(task.parameters()))
