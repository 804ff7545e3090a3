"""The heads against their formulas, and what they start from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dualfuse.layers.heads import ITCHead, ITCHeadConfig, MLMHead, init_linear, normalize


def test_unit_vectors() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, -1e-20]])
    assert_close(normalize(x), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


def test_word_head_against_the_formula() -> None:
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


def test_first_values() -> None:
    torch.manual_seed(0)
    head, views = MLMHead(64, 300), ITCHead(ITCHeadConfig(), 64, fused_width=64)
    for matrix in (head.dense.weight, head.decoder.weight, views.image.weight, views.text.weight):
        assert matrix.std().item() == pytest.approx(0.02, rel=0.05)
    assert not head.dense.bias.any() and not head.decoder.bias.any()
    assert views.image.bias is None and views.text.bias is None
    match = nn.Linear(500, 2)
    init_linear(match)
    assert match.weight.std().item() == pytest.approx(0.02, rel=0.1) and not match.bias.any()


def test_temperature() -> None:
    views = ITCHead(ITCHeadConfig(), 4, fused_width=4)
    assert views.logit_scale.shape == (1,)
    assert views.logit_scale.item() == pytest.approx(2.6593, abs=1e-4)
    assert views.scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    nn.init.constant_(views.logit_scale, 50.0)
    assert views.scale.item() == pytest.approx(1000, rel=1e-4)
