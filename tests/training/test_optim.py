from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dualfuse.layers.heads import ITCHead, ITCHeadConfig, MLMHead
from dualfuse.models.base import VisionLanguageModel
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Optim
from dualfuse.tasks.finetune.image_classification import ImageClassificationConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.training.optim import (
    TransformersAdamW,
    build_optimizer,
    clip_grad_norm,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "vlmo" / "adamw.safetensors"


class Everything(nn.Module):
    """A model with a head of every kind, as the tasks have them."""

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.model = model
        self.contrast = ITCHead(ITCHeadConfig(), (32, 32), fused_width=32)
        self.masked = MLMHead(32, 50)
        self.answer = nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 5))


@pytest.fixture
def task() -> Everything:
    cfg = VLMoConfig(width=32, depth=2, heads=2, vl_expert_start=1, image_size=(32, 32), vocab_size=50, text_length=12)
    return Everything(cfg.build())


def _names(task: nn.Module, optim: Optim) -> tuple[set[str], set[str]]:
    decayed, spared = parameter_groups(task, optim)
    assert decayed["weight_decay"] == optim.weight_decay and spared["weight_decay"] == 0
    for group in (decayed, spared):
        assert [task.get_parameter(name) is given for name, given in zip(group["names"], group["params"], strict=True)]
    return set(decayed["names"]), set(spared["names"])


def _every(task: nn.Module) -> set[str]:
    return {name for name, _ in task.named_parameters()}


MATRICES = {
    *(f"model.blocks.0.experts.{expert}.{part}.weight" for expert in ("text", "image") for part in ("up", "down")),
    *(f"model.blocks.1.experts.{e}.{part}.weight" for e in ("text", "image", "vl") for part in ("up", "down")),
    *(f"model.blocks.{i}.attention.shared.{part}.weight" for i in (0, 1) for part in ("qkv", "projection")),
    "model.patches.projection.weight",
    "model.words.word.weight",
    "model.words.token_type.weight",
    "model.types.weight",
    "model.pooler.weight",
    "contrast.image.weight",
    "contrast.text.weight",
    "masked.dense.weight",
    "masked.decoder.weight",
    "answer.0.weight",
    "answer.3.weight",
}


def test_only_matrices_are_decayed(task: Everything) -> None:
    decayed, spared = _names(task, Optim(weight_decay=0.05))
    assert decayed == MATRICES
    assert spared == _every(task) - MATRICES


def test_the_released_rule(task: Everything) -> None:
    """Against the lists that the official code prints for its own names, written in ours."""
    decayed, spared = _names(task, Optim(decay_rule="official"))
    assert decayed == MATRICES | {
        *(f"model.blocks.{i}.experts.{expert}.norm.weight" for i in (0, 1) for expert in ("text", "image")),
        "model.blocks.1.experts.vl.norm.weight",
        *(f"model.blocks.{i}.scale_{k}.weight" for i in (0, 1) for k in (1, 2)),
        "model.patches.class_token",
        "contrast.logit_scale",
        "answer.1.weight",
    }
    assert spared == _every(task) - decayed
    assert {"model.relative_bias.table", "model.blocks.0.attention.shared.q_bias", "masked.norm.weight"} <= spared


@pytest.mark.parametrize("decay", ["matrices", "official"])
def test_frozen_parameters_and_empty_groups_are_omitted(task: Everything, decay: str) -> None:
    for name, parameter in task.named_parameters():
        parameter.requires_grad = name == "model.pooler.weight"
    (group,) = parameter_groups(task, Optim(decay_rule=decay))
    assert group["names"] == ["model.pooler.weight"]
    task.model.pooler.weight.requires_grad = False
    with pytest.raises(ValueError, match="no parameter is trainable"):
        parameter_groups(task, Optim(decay_rule=decay))


def _train(optimizer: torch.optim.Optimizer, parameter: Tensor, gradients: Tensor) -> Tensor:
    after = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        after.append(parameter.detach().clone())
    return torch.stack(after)


def test_official_adamw_equals_recorded_steps() -> None:
    golden = load_file(GOLDEN)
    parameter = nn.Parameter(golden["p0"].clone())
    optimizer = TransformersAdamW([{"params": [parameter], "weight_decay": 0.01}], lr=2e-4, betas=(0.9, 0.98), eps=1e-8)
    after = _train(optimizer, parameter, golden["grads"])
    torch.testing.assert_close(after, golden["params_after"], atol=1e-6, rtol=0)


def test_official_adamw_with_gradients_as_small_as_epsilon() -> None:
    """One step by hand: bias correction does not reach eps, and the decay takes a share of the moved parameter."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optim = Optim(adamw="official", lr=0.1, betas=(0.9, 0.98), eps=1e-3, weight_decay=0.5)
    after = _train(build_optimizer(layer, optim), layer.weight, torch.full((1, 1, 1), 1e-3))
    moved = 1 - 0.1 * (0.02**0.5 / 0.1) * (0.1 * 1e-3) / (0.02**0.5 * 1e-3 + 1e-3)
    torch.testing.assert_close(after.item(), moved - 0.1 * 0.5 * moved, rtol=1e-6, atol=0)


def test_torch_adamw_equals_the_formula() -> None:
    """One step by hand: the first one moves by the learning rate, after the decay."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optim = Optim(lr=0.1, eps=1e-3, weight_decay=0.5)
    after = _train(build_optimizer(layer, optim), layer.weight, torch.full((1, 1, 1), 1e-3))
    torch.testing.assert_close(after.item(), 1 - 0.1 * 0.5 - 0.1 * 1e-3 / (1e-3 + 1e-3), rtol=1e-6, atol=0)


def test_parameter_without_gradient_does_not_change(task: Everything) -> None:
    before = task.model.pooler.weight.detach().clone()
    optimizer = build_optimizer(task, Optim(adamw="official"))
    _train(optimizer, task.contrast.logit_scale, torch.ones(2, 1))
    assert torch.equal(task.model.pooler.weight, before)
    assert [parameter.shape for parameter in optimizer.state] == [(1,)]


def test_learning_rate_equals_the_official_schedule() -> None:
    """Factors that the official code printed: 200 000 steps, 20 000 of warm-up."""
    printed = {
        0: 0.0,
        1: 5e-05,
        1000: 0.05,
        2500: 0.125,
        10000: 0.5,
        20000: 1.0,
        100000: 0.5555555555555556,
        199999: 5.555555555591951e-06,
        200000: 0.0,
    }
    for warmup in (20_000, 0.1):
        optim = Optim(lr=2e-4, warmup=warmup)
        assert {step: learning_rate(optim, step, 200_000) / 2e-4 for step in printed} == pytest.approx(printed)


def test_other_schedules() -> None:
    cosine, constant = Optim(lr=1, warmup=10, schedule="cosine"), Optim(lr=1, schedule="constant")
    assert [learning_rate(cosine, step, 110) for step in (5, 10, 35, 60, 110)] == pytest.approx(
        [0.5, 1, (1 + 0.5**0.5) / 2, 0.5, 0]
    )
    assert [learning_rate(constant, step, 110) for step in (0, 50, 110)] == [1, 1, 1]


def test_warmup_longer_than_a_trial_run() -> None:
    assert [learning_rate(Optim(lr=1, warmup=2500), step, 10) for step in (0, 5, 10)] == [0, 0.002, 0.004]
    assert learning_rate(Optim(lr=1, warmup=10), 10, 10) == 1


def test_learning_rate_of_all_groups_is_set(task: Everything) -> None:
    optimizer = build_optimizer(task, Optim())
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_clipping_equals_the_formula() -> None:
    layer = nn.Linear(1, 2)
    layer.weight.grad, layer.bias.grad = torch.tensor([[3.0], [0.0]]), torch.tensor([4.0, 12.0])
    assert clip_grad_norm(layer, 0).item() == pytest.approx(13)
    assert layer.bias.grad.tolist() == [4, 12]
    assert clip_grad_norm(layer, 20).item() == pytest.approx(13)
    assert layer.bias.grad.tolist() == [4, 12]
    assert clip_grad_norm(layer, 1.3).item() == pytest.approx(13)
    assert layer.weight.grad.flatten().tolist() == pytest.approx([0.3, 0], rel=1e-5)
    assert layer.bias.grad.tolist() == pytest.approx([0.4, 1.2], rel=1e-5)


def test_heads_and_fusion_have_their_own_learning_rates() -> None:
    config = BridgeTowerConfig(
        image=CLIPViTConfig(width=64, depth=2, patch_size=8, image_size=(16, 16)),
        text=RobertaConfig(width=64, depth=2, heads=2, feed_forward=32, vocab_size=20, text_length=8),
        width=64,
        heads=2,
        feed_forward=32,
        layers=2,
    )
    task = PairsConfig(itc_head=ITCHeadConfig(temperature="plain")).build(config.build())
    optim = Optim(lr=0.1, head_lr_mult=5.0, fusion_lr_mult=3.0, schedule="constant")
    optimizer = build_optimizer(task, optim)
    set_learning_rate(optimizer, learning_rate(optim, 0, 10))
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rates.keys() == dict(task.named_parameters()).keys()
    expected = {
        "model.text_tower.layers.1.up.weight": 0.1,
        "model.image_tower.class_embedding": 0.1,
        "model.types.weight": 0.1,
        "itc_heads.0.temperature": 0.1,
        "model.transforms.image.bias": 0.3,
        "model.bridges.text.0.norm.weight": 0.3,
        "model.poolers.image.weight": 0.3,
        "itm_head.bias": 0.5,
        "itc_heads.0.text.weight": 0.5,
        "mlm_head.norm.weight": 0.5,
    }
    assert {name: round(rates[name], 6) for name in expected} == expected
    assert len(optimizer.param_groups) == 6
    without = build_optimizer(task, Optim())
    assert len(without.param_groups) == 2


def test_layer_decay_lowers_the_rate_with_depth() -> None:
    """BEiT's rule for a model of three layers: decay ** (L + 1 - layer), the embeddings 0 and the head L + 1."""
    cfg = VLMoConfig(width=32, depth=3, heads=2, vl_expert_start=2, image_size=(32, 32), vocab_size=50, text_length=12)
    task = ImageClassificationConfig(num_classes=4).build(cfg.build())
    optim = Optim(lr=0.1, layer_decay=0.5, head_lr_mult=3.0, weight_decay=0.05, decay_rule="beit")
    groups = parameter_groups(task, optim)
    rates = {name: group["rate"] for group in groups for name in group["names"]}
    assert rates.keys() == dict(task.named_parameters()).keys()
    wanted = {"head.": 3.0, "norm.": 3.0, "model.norm.": 1.0, "model.relative_bias.": 1.0, "model.pooler.": 1.0}
    wanted |= {f"model.blocks.{layer}.": 0.5 ** (4 - (layer + 1)) for layer in range(3)}
    wanted |= {f"model.{part}.": 0.5**4 for part in ("patches", "words", "types")}
    for name, rate in rates.items():
        assert [rate] == [value for start, value in wanted.items() if name.startswith(start)], name
    assert len(groups) == 2 * 5 + 2
    assert {group["lr"] for group in groups} == {0.1 * rate for rate in rates.values()}


def test_frozen_layers_do_not_count_for_layer_decay() -> None:
    """Of a BridgeTower images alone pass one tower: its top layer is the one below the head."""
    config = BridgeTowerConfig(
        image=CLIPViTConfig(width=64, depth=2, patch_size=8, image_size=(16, 16)),
        text=RobertaConfig(width=64, depth=3, heads=2, feed_forward=32, vocab_size=20, text_length=8),
        width=64,
        heads=2,
        feed_forward=32,
        layers=2,
    )
    optim = Optim(layer_decay=0.5, fusion_lr_mult=3.0)

    def rates(task: nn.Module) -> dict[str, float]:
        return {name: group["rate"] for group in parameter_groups(task, optim) for name in group["names"]}

    task = ImageClassificationConfig(num_classes=4).build(config.build())
    whole = rates(task)
    assert whole["model.layers.text.1.up.weight"] == 3 / 2 and whole["model.layers.image.0.up.weight"] == 3 / 4
    assert whole["model.image_tower.blocks.1.up.weight"] == whole["model.text_tower.layers.2.up.weight"] == 1 / 8
    assert whole["model.image_tower.norm_after.weight"] == 1 / 8
    assert whole["model.image_tower.blocks.0.up.weight"] == whole["model.text_tower.layers.1.up.weight"] == 1 / 16
    assert whole["model.text_tower.layers.0.up.weight"] == 1 / 32
    assert whole["model.image_tower.class_embedding"] == whole["model.text_tower.words.word.weight"] == 1 / 64
    for name, parameter in task.named_parameters():
        parameter.requires_grad = name.startswith(("head", "norm", "model.image_tower"))
    alone = rates(task)
    assert alone["model.image_tower.blocks.1.up.weight"] == alone["model.image_tower.norm_after.bias"] == 1 / 2
    assert (alone["model.image_tower.blocks.0.up.weight"], alone["model.image_tower.positions"]) == (1 / 4, 1 / 8)


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5])
def test_layer_decay_outside_0_to_1_is_refused(decay: float) -> None:
    task = ImageClassificationConfig(num_classes=4).build(
        VLMoConfig(width=32, depth=1, heads=2, vl_expert_start=1).build()
    )
    with pytest.raises(ValueError, match="layer_decay is"):
        parameter_groups(task, Optim(layer_decay=decay))


def test_poly_equals_mmcv() -> None:
    """Linear from step 0, times a warm-up from 1e-6 to 1 (mmcv's policy poly, power 1), as computed by its formula."""
    optim = Optim(lr=3e-5, warmup=1500, schedule="poly")
    for step in (0, 1, 749, 1499, 1500, 80_000, 159_999):
        regular = 3e-5 * (1 - step / 160_000)
        expected = regular * (1 - (1 - step / 1500) * (1 - 1e-6)) if step < 1500 else regular
        assert learning_rate(optim, step, 160_000) == pytest.approx(expected, abs=1e-10)


def test_a_rate_per_epoch_equals_torch() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5, eta_min=0)
    rates = []
    for _ in range(5):
        rates += [optimizer.param_groups[0]["lr"]] * 3
        optimizer.step()
        schedule.step()
    optim = Optim(lr=4e-3, schedule="cosine", plateaus=5)
    assert [learning_rate(optim, step, 15) for step in range(15)] == pytest.approx(rates)
