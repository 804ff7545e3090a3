"""EfficientNet-Lite: its states and pooled state against the published implementation, and the contract of a tower."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from dualfuse.convert.formats.efficientnet_lite import MARK, SIZES, TOWER, import_efficientnet_lite, layout
from dualfuse.convert.rename import export_tensors
from dualfuse.errors import DualfuseError
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.bert import BertConfig
from dualfuse.models.towers.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from dualfuse.testing import check_model

TINY = EfficientNetLiteConfig(image_size=(64, 96), pooled_layers=2)
published = pytest.importorskip("efficientnet_lite_pytorch")


def reference(name: str) -> nn.Module:
    """Return the published network with random weights and statistics in float64."""
    torch.manual_seed(0)
    model = published.EfficientNet.from_name(name, image_size=(64, 96)).double().eval()
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model


def converted(model: nn.Module, cfg: EfficientNetLiteConfig) -> EfficientNetLite:
    imported = import_efficientnet_lite(model.state_dict())
    assert not imported.unexpected
    tower = cfg.build().double()
    tower.load_state_dict({name.removeprefix(TOWER): tensor for name, tensor in imported.tensors.items()})
    return tower


@pytest.mark.parametrize("size", ["0", pytest.param("2", marks=pytest.mark.slow)])
@torch.no_grad()
def test_states_are_those_of_the_published_network(size: str) -> None:
    model = reference(f"efficientnet-lite{size}")
    tower = converted(model, SIZES[size]).train()  # training mode changes nothing
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    last = model.extract_features(images)
    below = {}
    ends = {sum(stage.blocks for stage in list(SIZES[size].stages.values())[: 1 + row]) - 1: row for row in range(7)}
    for number, block in enumerate(model._blocks):
        if number in ends:
            block.register_forward_hook(lambda _, __, out, row=ends[number]: below.update({row: out}))
    model.extract_features(images)
    output = tower(images, layers=(1, 4, 0, 4))
    assert output.grid == (2, 3)
    assert_close(output.states[1][:, 1:], last.flatten(2).transpose(1, 2), atol=1e-10, rtol=0)
    assert_close(output.states[3][:, 0], last.mean((2, 3)), atol=1e-10, rtol=0)
    assert_close(output.pooled, last.mean((2, 3)), atol=1e-10, rtol=0)
    for state, row, fold in ((output.states[0], 3, 2), (output.states[2], 2, 4)):
        folded = F.unfold(below[row], fold, stride=fold).transpose(1, 2)  # channels first, then the cells of each fold
        assert_close(state[:, 1:, : folded.shape[2]], folded, atol=1e-10, rtol=0)
        assert_close(state[:, 0], state[:, 1:].mean(1))
        assert not state[:, :, folded.shape[2] :].any()


@torch.no_grad()
def test_pooled_layers_are_concatenated_from_below() -> None:
    tower = TINY.build()
    images = torch.randn(2, 3, 64, 96)
    output = tower(images, layers=(3, 4))
    assert output.pooled is not None and output.pooled.shape == (2, TINY.pooled_width) == (2, 192 + 1280)
    means = [output.states[0][:, 0, :192], output.states[1][:, 0]]
    assert_close(output.pooled, torch.cat(means, dim=1))
    assert tower(images, layers=(3,)).pooled is None


@torch.no_grad()
def test_layers_above_the_highest_are_not_run() -> None:
    tower = TINY.build()
    tower.stages[5].register_forward_hook(lambda *_: pytest.fail("stage 5 was run"))
    tower(torch.randn(1, 3, 32, 32), layers=(2,))


def test_names_in_both_directions() -> None:
    tensors = reference("efficientnet-lite0").state_dict()
    imported = import_efficientnet_lite(tensors)
    back = export_tensors(imported.tensors, layout(SIZES["0"])).tensors
    assert MARK in back
    assert {*back, *imported.unused} == {*tensors}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in back.items())


def test_other_checkpoints_are_refused() -> None:
    with pytest.raises(DualfuseError, match="0 blocks"):
        import_efficientnet_lite({"weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "change",
    [{"depth": 4}, {"width": 320}, {"image_size": (48, 64)}, {"channels_mult": 3.0}, {"pooled_layers": 6}],
    ids=str,
)
def test_sizes_that_do_not_exist_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(DualfuseError, match=next(iter(change))):
        EfficientNetLiteConfig(**change)


@pytest.mark.slow
def test_a_model_over_it_keeps_the_contract() -> None:
    text = BertConfig(width=16, depth=2, heads=2, feed_forward=32, vocab_size=50, text_length=8)
    image = replace(TINY, image_size=(32, 64))
    model = BridgeTowerConfig(image=image, text=text, width=16, heads=2, feed_forward=32, layers=2, dropout=0.0)
    check_model(model, image_size=(32, 64), text_length=8)
