"""The published sizes of BridgeTower: numbers of parameters, and one full-size comparison with transformers."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
import transformers
from torch import nn

from dualfuse.convert.formats.bridgetower_hf import layout
from dualfuse.convert.formats.bridgetower_hf_config import read_config
from dualfuse.convert.rename import import_tensors
from dualfuse.layers.heads import MLMHead
from dualfuse.models.bridgetower import BridgeTower, BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig

LARGE = BridgeTowerConfig(
    image=CLIPViTConfig(width=1024, depth=24, patch_size=14, image_size=(294, 294)),
    text=RobertaConfig(width=1024, depth=24, heads=16, feed_forward=4096),
    width=1024,
    heads=16,
    feed_forward=4096,
)


def count(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def unused_pooler(width: int) -> int:
    """Return the parameters of the published text towers' pooler, which ours lack because nothing reads it."""
    return width * width + width


@pytest.mark.parametrize(
    ("cfg", "parts", "without_head", "with_head"),
    [
        pytest.param(
            BridgeTowerConfig(),
            (124_645_632, 85_897_728, 1_181_184, 2 * 56_710_656, 3_072, 15_360, 1_181_184, 1_536, 39_245_913),
            326.35,
            365.59,
            id="base",
        ),
        pytest.param(
            LARGE,
            (355_359_744, 303_369_216, 2_099_200, 2 * 100_780_032, 4_096, 20_480, 2_099_200, 2_048, 52_573_273),
            864.51,
            917.09,
            id="large",
        ),
    ],
)
def test_parameters_of_the_published_sizes(
    cfg: BridgeTowerConfig, parts: tuple[int, ...], without_head: float, with_head: float
) -> None:
    """Counted on modules of transformers, at 288 and 294 pixels."""
    with torch.device("meta"):
        model: BridgeTower = cfg.build()
        head = MLMHead(model.text_width, model.vocab_size)
    assert model.first_norms is not None
    counts = (
        count([model.text_tower]) + unused_pooler(cfg.text.width),
        count([model.image_tower]),
        count([model.transforms]),
        count([model.layers]),
        count([model.first_norms]),
        count([model.bridges]),
        count([model.poolers]),
        count([model.types]),
        count([head]),
    )
    assert counts == parts
    total = count([model]) + unused_pooler(cfg.text.width)
    assert total == sum(parts[:-1])  # nothing is left
    assert round(total / 1e6, 2) == without_head
    assert round((total + count([head])) / 1e6, 2) == with_head


def test_meter_is_bridgetower_without_bridges() -> None:
    """The paper counts 18.4 thousand parameters: two LayerNorms before the first layers and ten bridges of one each."""
    with torch.device("meta"):
        ours, meter = (count([BridgeTowerConfig(bridge=kind).build()]) for kind in ("add", "none"))
    assert ours - meter == 12 * 2 * 768 == 18_432


@pytest.mark.slow
@torch.no_grad()
def test_base_size_against_transformers() -> None:
    """Compare on random weights, images of 288 x 288 and 288 x 192 pixels, and texts of 50 and 7 tokens."""
    torch.manual_seed(0)
    theirs = transformers.BridgeTowerModel(transformers.BridgeTowerConfig()).eval()
    for name, parameter in theirs.named_parameters():
        if parameter.ndim < 2:
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.1)
    with torch.device("meta"):
        model = read_config(theirs.config.to_dict(), {}).model.build().eval()
    tensors = import_tensors(theirs.state_dict(), layout("add", "")).tensors
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, assign=True)
    mask = torch.arange(50) < torch.tensor([50, 7])[:, None]
    ids = torch.randint(3, 50_265, (2, 50)).masked_fill(~mask, 1)
    for size in ((288, 288), (288, 192)):
        images = torch.randn(2, 3, *size)
        expected = theirs(ids, mask.long(), pixel_values=images, interpolate_pos_encoding=True)
        fused = model.fuse(model.embed_image(images), model.embed_text(ids, mask))
        assert (fused.text - expected.text_features).abs().max() < 1e-4
        assert (fused.image - expected.image_features).abs().max() < 1e-4
        assert (fused.pooled - expected.pooler_output).abs().max() < 1e-4
        assert fused.pooled.std() > 0.1
