"""Weight decay, learning rates and their schedule, against facts recorded from the official VLMo code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from official_vlmo import from_official

from dualfuse.convert.formats.vlmo_official import layout
from dualfuse.convert.rename import rename
from dualfuse.models.vlmo import InitConfig, VLMoConfig
from dualfuse.recipe import Optim
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.training.optim import build_optimizer, learning_rate, parameter_groups, set_learning_rate

GOLDEN = Path(__file__).parents[1] / "golden" / "vlmo"
OPTIMIZER = json.loads((GOLDEN / "optimizer.json").read_text())
FACTS = json.loads((GOLDEN / "facts.json").read_text())["facts"]
TINY = VLMoConfig(
    width=48, depth=4, heads=4, vl_expert_start=2, patch_size=8, image_size=(32, 32), vocab_size=101, text_length=20
)
CONFIGS = {
    "rel": TINY,
    "abs": VLMoConfig(**(vars(TINY) | {"positions": "absolute", "init": InitConfig(layer_scale=0.0)})),
}


@pytest.mark.parametrize("variant", [name for name in CONFIGS if "optimizer_groups" in FACTS[name]])
def test_groups_equal_the_official_code(variant: str) -> None:
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


@pytest.mark.parametrize("variant", CONFIGS)
def test_vqa_groups_have_the_head_learning_rate(variant: str) -> None:
    """The official code lists the parameters of the pre-training heads for VQA too; ours have no such heads there."""
    names = layout("vqa", relative=variant == "rel").names
    theirs: dict[str, tuple[float, float]] = {}
    for group in OPTIMIZER[variant]["optimizer_groups_vqa"]:
        tensors = rename(dict.fromkeys(group["names"], torch.zeros(1)), names).tensors
        theirs |= dict.fromkeys(tensors, (group["lr"], group["weight_decay"]))
    task = VQAConfig(num_answers=17).build(CONFIGS[variant].build())
    optim = Optim(lr=2e-4, weight_decay=0.01, decay_rule="official", head_lr_mult=20.0, schedule="constant")
    optimizer = build_optimizer(task, optim)
    set_learning_rate(optimizer, learning_rate(optim, 0, 1))
    ours = {
        name: (pytest.approx(group["lr"]), group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["names"]
    }
    assert ours == {name: expected for name, expected in theirs.items() if name in ours}
    assert theirs.keys() - ours.keys() <= {"model.words.position.weight"}


def test_the_schedule_is_that_of_the_official_code() -> None:
    optim = Optim(lr=1.0, warmup=20_000, schedule="linear")
    for step, factor in OPTIMIZER["lr_factor_by_step"].items():
        assert learning_rate(optim, int(step), 200_000) == pytest.approx(factor, rel=1e-9)
