"""Heads against their formulas, and their initial weights."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import ITCHead, ITCHeadConfig, MLMHead, init_linear, normalize


def test_normalize() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, -1e-20]])
    assert_close(normalize(x), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


def test_mlm_head_matches_the_formula() -> None:
    torch.manual_seed(0)
    head = MLMHead(8, 11).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(5, 8, dtype=torch.float64)
    wide = x @ head.dense.weight.T + head.dense.bias
    bent = wide * (1 + torch.erf(wide / math.sqrt(2))) / 2
    spread = (bent.var(1, correction=0, keepdim=True) + 1e-12).sqrt()
    normed = (bent - bent.mean(1, keepdim=True)) / spread * head.norm.weight + head.norm.bias
    assert_close(head(x), normed @ head.decoder.weight.T + head.decoder.bias)
    assert head(x[:0]).shape == (0, 11)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    head, views = MLMHead(64, 300), ITCHead(ITCHeadConfig(), (64, 64), fused_width=64)
    for matrix in (head.dense.weight, head.decoder.weight, views.image.weight, views.text.weight):
        assert matrix.std().item() == pytest.approx(0.02, rel=0.05)
    assert not head.dense.bias.any() and not head.decoder.bias.any()
    assert views.image.bias is None and views.text.bias is None
    match = nn.Linear(500, 2)
    init_linear(match)
    assert match.weight.std().item() == pytest.approx(0.02, rel=0.1) and not match.bias.any()


def test_log_temperature_is_bounded() -> None:
    views = ITCHead(ITCHeadConfig(), (4, 4), fused_width=4)
    assert views.logit_scale.shape == (1,)
    assert views.logit_scale.item() == pytest.approx(2.6593, abs=1e-4)
    assert views.scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    nn.init.constant_(views.logit_scale, 50.0)
    assert views.scale.item() == pytest.approx(1000, rel=1e-4)


@pytest.mark.parametrize(("temperature", "bounded"), [(0.0001, 0.001), (-0.001, 0.001), (0.2, 0.2), (0.7, 0.5)])
def test_plain_temperature_is_bounded_and_keeps_its_gradient(temperature: float, bounded: float) -> None:
    head = ITCHead(ITCHeadConfig(temperature="plain"), (4, 4), fused_width=4)
    assert head.temperature.item() == pytest.approx(0.07)
    nn.init.constant_(head.temperature, temperature)
    assert head.scale.item() == pytest.approx(1 / bounded, rel=1e-4)
    head.scale.backward()
    assert head.temperature.grad is not None
    assert head.temperature.grad.item() == pytest.approx(-1 / bounded**2, rel=1e-4)


@pytest.mark.parametrize("temperature", ["log", "plain"])
def test_sigmoid_head_adds_a_logit_bias_and_draws_the_same_weights(temperature: Literal["log", "plain"]) -> None:
    heads = []
    for loss in ("softmax", "sigmoid"):
        torch.manual_seed(0)
        heads.append(ITCHead(ITCHeadConfig(loss=loss, temperature=temperature), (8, 8), fused_width=8))
    softmax, sigmoid = heads
    assert sigmoid.state_dict().keys() - softmax.state_dict().keys() == {"logit_bias"}
    assert torch.equal(softmax.image.weight, sigmoid.image.weight)
    assert torch.equal(softmax.text.weight, sigmoid.text.weight)
    assert (sigmoid.scale.item(), sigmoid.logit_bias.item()) == (pytest.approx(10, rel=1e-5), -10)


def test_fused_features_need_the_softmax_loss() -> None:
    with pytest.raises(DualfuseError, match="fused"):
        ITCHeadConfig(loss="sigmoid", fused=True)


def test_itc_projections_of_two_widths() -> None:
    with pytest.raises(ValueError, match=r"images of width 6 with texts of width 4: set itc_head\.width"):
        ITCHead(ITCHeadConfig(), (6, 4), fused_width=4)
    head = ITCHead(ITCHeadConfig(width=3, hidden=5, dropout=0.5), (6, 4), fused_width=4).eval()
    x, y = torch.randn(2, 6), torch.randn(2, 4)
    image, text = head.project(x, y)
    first, last = head.text[0], head.text[3]
    expected = torch.nn.functional.gelu(y @ first.weight.T + first.bias) @ last.weight.T
    assert_close(text, expected / expected.square().sum(1, keepdim=True).sqrt())
    assert image.shape == (2, 3)


def test_itc_projections_after_a_layer_norm() -> None:
    head = ITCHead(ITCHeadConfig(width=3, layer_norm=True), (6, 4), fused_width=4)
    x, y = torch.randn(2, 6), torch.randn(2, 4)
    centered = y - y.mean(1, keepdim=True)
    expected = (centered / (centered.square().mean(1, keepdim=True) + 1e-5).sqrt()) @ head.text[1].weight.T
    assert_close(head.project(x, y)[1], expected / expected.square().sum(1, keepdim=True).sqrt())
    assert len(list(head.text.parameters())) == 1
