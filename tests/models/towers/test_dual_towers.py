"""The towers of CLIP and SigLIP: pooling, padding, positions and sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from dualfuse.errors import DualfuseError
from dualfuse.layers.attention_flow import AttentionFlow, rollout
from dualfuse.models.towers.clip_text import CLIPText, CLIPTextConfig
from dualfuse.models.towers.clip_vit import CLIPViT, CLIPViTConfig
from dualfuse.models.towers.siglip import SiglipText, SiglipTextConfig, SiglipViT, SiglipViTConfig

SIZE = (16, 24)
CLIP_TEXT = CLIPTextConfig(width=16, depth=2, heads=2, feed_forward=32, vocab_size=50, text_length=9)
SIGLIP_VIT = SiglipViTConfig(width=16, depth=2, heads=2, feed_forward=32, patch_size=8, image_size=SIZE)
SIGLIP_TEXT = SiglipTextConfig(
    width=16, depth=2, heads=2, feed_forward=32, vocab_size=50, text_length=9, projection_width=12, pad_id=3
)
IDS = torch.tensor([[48, 7, 8, 9, 49], [48, 5, 49, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()


@torch.no_grad()
def test_clip_pools_the_end_of_text_and_no_token_sees_later_ones() -> None:
    tower = CLIPText(CLIP_TEXT).eval()
    output = tower(IDS, MASK, (1,))
    assert output.pooled is not None
    assert_close(output.pooled, torch.stack([output.states[0][0, 4], output.states[0][1, 2]]))
    beginning = tower(IDS[:, :3], MASK[:, :3], (1,)).states[0]
    assert_close(output.states[0][:, :3], beginning)
    assert tower(IDS, MASK, (0,)).pooled is None


@torch.no_grad()
def test_siglip_pads_every_text_to_its_length_and_reads_the_padding() -> None:
    tower = SiglipText(SIGLIP_TEXT).eval()
    padded = torch.tensor([[48, 7, 8, 9, 49, 3, 3, 3, 3], [48, 5, 49, 3, 3, 3, 3, 3, 3]])
    whole = tower(padded, torch.ones_like(padded).bool(), (0, 1))
    short = tower(IDS, MASK, (0, 1))
    assert short.pooled is not None and whole.pooled is not None and short.pooled.shape == (2, 12)
    assert_close(short.pooled, whole.pooled)
    assert_close(whole.pooled, tower.projection(whole.states[1][:, -1]))
    for one, other in zip(short.states, whole.states, strict=True):
        assert_close(one, other[:, :5])


@torch.no_grad()
def test_siglip_puts_the_mean_over_patches_first() -> None:
    tower = SiglipViT(SIGLIP_VIT).eval()
    images = torch.randn(2, 3, *SIZE)
    output = tower(images, (0, 1))
    assert output.grid == (2, 3) and [state.shape for state in output.states] == [(2, 7, 16)] * 2
    for state in output.states:
        assert_close(state[:, 0], state[:, 1:].mean(1))
    assert output.pooled is not None
    assert_close(output.pooled, tower.pooling(output.states[1][:, 1:]))


@torch.no_grad()
def test_siglip_ignores_pixels_beyond_the_last_whole_patch_of_its_own_size() -> None:
    tower = SiglipViT(replace(SIGLIP_VIT, image_size=(18, 25))).eval()
    images = torch.randn(1, 3, 18, 25)
    output = tower(images, (1,))
    assert output.grid == (2, 3)
    assert_close(output.states[0], tower(images[..., :16, :24], (1,)).states[0])
    with pytest.raises(DualfuseError, match="18 x 24 pixels cannot be cut into patches of 8"):
        tower(images[..., :24], (1,))


def test_siglip_positions_are_resized_as_those_of_clip() -> None:
    one, other = SiglipViT(SIGLIP_VIT), SiglipViT(replace(SIGLIP_VIT, image_size=(32, 48)))
    resized = other.resize_tensor("positions", one.positions.detach(), one, has_text=True)
    assert resized is not None and resized[0].shape == (24, 16) and resized[1] == "patches 2 x 3 to 4 x 6, bicubic"
    clip = CLIPViTConfig(width=16, depth=1, heads=2, patch_size=8, image_size=SIZE)
    small, large = CLIPViT(clip), CLIPViT(replace(clip, image_size=(32, 48)))
    small.positions.data[1:] = one.positions.data
    expected = large.resize_tensor("positions", small.positions.detach(), small, has_text=True)
    assert expected is not None
    assert_close(resized[0], expected[0][1:])
    assert one.resize_tensor("positions", one.positions, one, has_text=True) is None


def test_relevance_of_a_short_text_leaves_padding_out() -> None:
    tower = SiglipText(SIGLIP_TEXT)
    flow = AttentionFlow(lambda _: torch.full((9, 9), 1 / 9), rollout)
    states = tower.attention_flow(flow, torch.eye(4))
    assert [state.shape for state in states] == [(4, 4)] * 2
    assert_close(states[0], torch.eye(4) / 2 + 1 / 18)


@pytest.mark.parametrize(
    ("cfg", "changes", "message"),
    [
        (CLIP_TEXT, {"heads": 3}, "width is 16 with 3 heads, depth 2; give a multiple of the heads"),
        (SIGLIP_TEXT, {"pad_id": 50}, "pad_id is 50; give an id below vocab_size, 50"),
        (SIGLIP_VIT, {"image_size": (4, 8)}, "smaller than patch_size 8"),
        (CLIPViTConfig(), {"heads": 7}, "width is 768 with 7 heads, depth 12; give a multiple of 7, and 1 to 1000"),
    ],
)
def test_impossible_sizes_are_refused(cfg: object, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DualfuseError, match=message):
        replace(cfg, **changes)  # type: ignore[type-var]
