"""LoRA against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dualfuse.errors import DualfuseError
from dualfuse.layers.lora import LoRALinear, add_lora, merge_lora
from dualfuse.models.towers.roberta import RobertaConfig


def test_the_formula_and_the_merged_weights() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(5, 3), torch.randn(4, 5)
    lora = LoRALinear(linear, rank=2, alpha=6.0)
    torch.testing.assert_close(lora(x), linear(x))
    nn.init.normal_(lora.lora_b)
    expected = x @ (linear.weight + 3.0 * lora.lora_b @ lora.lora_a).T + linear.bias
    torch.testing.assert_close(lora(x), expected)
    merged = merge_lora(nn.ModuleDict({"part": lora}), {f"part.{name}": t for name, t in lora.state_dict().items()})
    assert set(merged) == {"part.weight", "part.bias"}
    torch.testing.assert_close(nn.functional.linear(x, merged["part.weight"], merged["part.bias"]), expected)
    assert {name for name, p in lora.named_parameters() if p.requires_grad} == {"lora_a", "lora_b"}


def test_targets_choose_layers_by_name() -> None:
    tower = RobertaConfig(width=32, depth=2, heads=2, feed_forward=32, vocab_size=20, text_length=8).build(0.0)
    assert add_lora(tower.fsdp_blocks(), 2, 4.0, ("attention.query", "attention.value")) == 4
    assert isinstance(tower.layers[1].get_submodule("attention.value"), LoRALinear)
    assert type(tower.layers[1].get_submodule("up")) is nn.Linear
    with pytest.raises(DualfuseError, match=r"attention\.key"):
        add_lora(tower.fsdp_blocks(), 2, 4.0, ("attn.*",))
