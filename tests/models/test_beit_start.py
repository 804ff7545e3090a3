"""The options that follow BEiT: one relative bias shared by all layers, and its initial weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.testing import assert_close

from dualfuse.models.vlmo import InitConfig, VLMo, VLMoConfig

TINY = VLMoConfig(
    width=16,
    depth=3,
    heads=2,
    vl_expert_start=2,
    patch_size=8,
    image_size=(16, 24),
    vocab_size=50,
    text_length=9,
    share_relative_bias=True,
)


def randomized(cfg: VLMoConfig) -> VLMo:
    torch.manual_seed(0)
    model = cfg.build().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def test_a_shared_relative_bias_stays_shared_in_training() -> None:
    model = randomized(TINY)
    table = model.get_parameter("relative_bias.table")
    mean = table.detach().unflatten(1, (3, 2)).mean(1).repeat(1, 3)
    each = randomized(replace(TINY, share_relative_bias=False))
    state = each.state_dict()
    state["relative_bias.table"] = mean
    each.load_state_dict(state)
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    assert_close(model.encode(model.embed_image(images)), each.encode(each.embed_image(images)), atol=1e-10, rtol=1e-10)
    nn.init.zeros_(table)
    optimizer = torch.optim.AdamW([table], lr=0.1)
    for _ in range(3):
        model.encode(model.embed_image(images)).square().sum().backward()
        optimizer.step()
    layers = table.detach().unflatten(1, (3, 2)).unbind(1)
    assert table.any() and all(torch.equal(layers[0], layer) for layer in layers)


def test_initial_weights_of_beit() -> None:
    torch.manual_seed(0)
    cfg = VLMoConfig(width=48, depth=4, heads=4, vl_expert_start=2, patch_size=8, image_size=(32, 32), vocab_size=50)
    cfg = replace(cfg, positions="absolute", init=InitConfig(std=0.05, layer_scale=0.1, rule="beit"))
    model = cfg.build()
    for number, block in enumerate(model.blocks, start=1):
        full = (block.attention["shared"].qkv, block.experts["image"].up)
        divided = (block.attention["shared"].projection, block.experts["image"].down)
        for layer, bound in (
            *((layer, 0.05) for layer in full),
            *((layer, 0.05 / (2 * number) ** 0.5) for layer in divided),
        ):
            assert 0.99 * bound < layer.weight.abs().max() <= bound * 1.0001
            assert not (layer.bias is not None and layer.bias.any())
        assert block.experts["text"].down.weight.abs().max() > 0.1  # text experts keep the rule of VLMo
    for weight in (model.patches.projection.weight, model.patches.class_token, model.patches.position):
        assert 0.04 < weight.abs().max() <= 0.0501
    assert not model.patches.projection.bias.any()
