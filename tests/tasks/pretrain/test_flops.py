"""The formulas of bench/flops.py against torch's count for a step without padding."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import BRIDGETOWER, MODEL

from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.tasks.pretrain.pair_batch import PairBatch
from dualfuse.tasks.pretrain.pairs import PairsConfig

BENCH = Path(__file__).parents[3] / "bench" / "flops.py"
SPEC = importlib.util.spec_from_file_location("flops", BENCH)
assert SPEC is not None and SPEC.loader is not None
flops = sys.modules["flops"] = importlib.util.module_from_spec(SPEC)  # where dataclasses look
SPEC.loader.exec_module(flops)

VLMO = replace(MODEL, depth=4, vl_expert_start=2, width=64, vocab_size=500, drop_path=0.0)
TOWERS = replace(
    BRIDGETOWER,
    image=replace(BRIDGETOWER.image, depth=3),
    text=replace(BRIDGETOWER.text, depth=3, feed_forward=256, vocab_size=500),
    width=64,
    feed_forward=256,
)
WORDS, MASKED, PAIRS = 10, 2, 4

TASKS = {
    "contrast": PairsConfig(itm_weight=0.0, mlm_weight=0.0, itc_features="unimodal"),
    "half the patches": PairsConfig(itm_weight=0.0, mlm_weight=0.0, patch_dropout=0.5),
    "both views": PairsConfig(itm_weight=0.0, mlm_weight=0.0),
    "words": PairsConfig(itc_weight=0.0, itm_weight=0.0),
    "match": PairsConfig(itc_weight=0.0, mlm_weight=0.0, negative_hardness=0.0),
    "half": PairsConfig(itc_weight=0.0, negative_hardness=0.0, negatives_per_pair=0),
    "paper": PairsConfig(),
    "one negative": PairsConfig(itc_features="unimodal", itm_on_masked_text=True, negatives_per_pair=1),
}


def batch() -> PairBatch:
    torch.manual_seed(0)
    ids, number = torch.randint(5, 500, (PAIRS, WORDS)), torch.arange(PAIRS)
    return {
        "image": torch.randn(PAIRS, 3, 32, 32),
        "ids": ids,
        "mask": torch.ones_like(ids).bool(),
        "masked_ids": ids,
        "positions": torch.tensor([[1, 3]] * PAIRS),
        "targets": ids[:, [1, 3]],
        "image_id": number,
        "text_id": number,
        "source": torch.zeros_like(number),
    }


def done(model: VLMoConfig | BridgeTowerConfig, task: PairsConfig) -> float:
    built, pairs = task.build(model.build()), batch()
    return flops.counted(lambda: built(pairs).loss.backward()) / PAIRS


@pytest.mark.parametrize(
    ("name", "positions"), [*((name, "absolute") for name in TASKS), ("paper", "relative"), ("contrast", "relative")]
)
def test_vlmo(name: str, positions: str) -> None:
    """Up to 4 % more: text positions in passes without MLM, and the similarities of the batch."""
    model = replace(VLMO, positions=positions)
    needed = flops.vlmo(model, TASKS[name], flops.Lengths.of(batch()))
    assert 0.9999 < done(model, TASKS[name]) / needed < 1.04


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("both views", "half the patches")])
def test_bridgetower(name: str) -> None:
    """More: the last layer of the image tower for all patches, of which ITC reads one."""
    needed = flops.bridgetower(TOWERS, TASKS[name], flops.Lengths.of(batch()))
    assert 0.9999 < done(TOWERS, TASKS[name]) / needed < (1.4 if name == "contrast" else 1.06)
