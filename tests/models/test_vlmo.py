"""What is particular to VLMo: other image sizes, image slots, and settings that cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dualfuse.layers.embeddings import resize_positions
from dualfuse.layers.relative_bias import resize_table
from dualfuse.models.vlmo import VLMo, VLMoConfig

TINY = VLMoConfig(
    width=16,
    depth=3,
    heads=2,
    vl_expert_start=2,
    patch_size=8,
    image_size=(24, 32),
    vocab_size=50,
    text_length=6,
    drop_path=0.0,
)


def stirred(cfg: VLMoConfig) -> VLMo:
    torch.manual_seed(0)
    model = cfg.build().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def pooled(model: VLMo, images: Tensor) -> Tensor:
    ids = torch.tensor([[2, 3, 4]]).expand(len(images), -1)
    return model.fuse(model.embed_image(images), model.embed_text(ids, torch.ones_like(ids))).pooled


def test_another_picture_size_is_a_model_made_for_it() -> None:
    model, images = stirred(TINY), torch.randn(2, 3, 40, 16)
    state = model.state_dict()
    state["relative_bias.table"] = resize_table(state["relative_bias.table"], (3, 4), (5, 2))
    other = replace(TINY, image_size=(40, 16)).build().eval()
    other.load_state_dict(state)
    assert_close(pooled(model, images), pooled(other, images))
    assert_close(model.encode(model.embed_image(images)), other.encode(other.embed_image(images)))


def test_another_picture_size_with_absolute_positions() -> None:
    model, images = stirred(replace(TINY, positions="absolute")), torch.randn(2, 3, 40, 16)
    state = model.state_dict()
    state["patches.position"] = resize_positions(state["patches.position"], (3, 4), (5, 2))
    assert not torch.equal(state["patches.position"][0, 1:].std(0), torch.zeros(16))
    other = replace(TINY, positions="absolute", image_size=(40, 16)).build().eval()
    other.load_state_dict(state)
    assert_close(pooled(model, images), pooled(other, images))


def test_resized_positions_keep_the_class_token_and_a_slope() -> None:
    """Away from the border a bicubic image of a slope is nearly the slope, read at the centres of the patches."""
    slope = torch.arange(8.0)[:, None, None] + 100 * torch.arange(10.0)[None, :, None]
    position = torch.cat([torch.full((1, 1, 1), -7.0), slope.view(1, 80, 1)], dim=1)
    resized = resize_positions(position, (8, 10), (16, 5))
    assert resized[0, 0] == -7
    rows, columns = (torch.arange(16) + 0.5) / 2 - 0.5, (torch.arange(5) + 0.5) * 2 - 0.5
    wanted = rows[:, None] + 100 * columns[None]
    assert_close(resized[0, 1:, 0].view(16, 5)[4:12, 1:4], wanted[4:12, 1:4], atol=0.06, rtol=0)


@pytest.mark.parametrize(("positions", "name"), [("relative", "relative_bias.table"), ("absolute", "patches.position")])
@pytest.mark.parametrize("size", [(24, 32), (16, 48), (8, 8)])
def test_positions_learn_from_pictures_of_any_size(positions: str, name: str, size: tuple[int, int]) -> None:
    model = stirred(replace(TINY, positions=positions))
    model.encode(model.embed_image(torch.randn(2, 3, *size))).sum().backward()
    gradient = model.get_parameter(name).grad
    assert gradient is not None and gradient.isfinite().all() and gradient.any()


def test_a_model_made_for_one_patch_reads_more() -> None:
    for size in ((8, 8), (8, 24)):
        model = stirred(replace(TINY, image_size=size))
        assert pooled(model, torch.randn(1, 3, 16, 32)).isfinite().all()


def test_slots_tell_pictures_apart() -> None:
    model, images = stirred(replace(TINY, image_slots=2)), torch.randn(1, 3, 24, 32)
    first, second = model.embed_image(images), model.embed_image(images, slot=1)
    difference = (second.states[0] - first.states[0])[0]
    assert_close(difference, (model.types.weight[2] - model.types.weight[1]).expand_as(difference))
    with pytest.raises(ValueError, match="slot 2: image_slots of this model is 2"):
        model.embed_image(images, slot=2)
    with pytest.raises(ValueError, match="slot 1: image_slots of this model is 1"):
        stirred(TINY).embed_image(images, slot=1)


def test_the_second_view_shares_the_lower_layers() -> None:
    """Its upper layers are the vision-language experts': their weights move it, and leave the plain view alone."""
    model = stirred(TINY)
    tokens = model.embed_image(torch.randn(2, 3, 24, 32))
    plain, other = model.itc_features(tokens)
    nn.init.normal_(model.blocks[2].experts["vl"].up.weight)
    plain_after, other_after = model.itc_features(tokens)
    assert torch.equal(plain, plain_after) and not torch.allclose(other, other_after)
    nn.init.normal_(model.blocks[2].experts["image"].up.weight)
    assert torch.equal(model.itc_features(tokens)[1], other_after) and not torch.allclose(model.encode(tokens), plain)
    nn.init.normal_(model.blocks[1].experts["image"].up.weight)
    assert not torch.allclose(model.itc_features(tokens)[1], other_after)


def test_separate_attention_keeps_modalities_apart_below() -> None:
    """With the last layer's joint attention cut out, an image cannot tell the words anything."""
    ids = torch.tensor([[2, 3, 4], [2, 3, 4]])
    for separate_attention_until, is_apart in ((2, True), (1, False)):
        model = stirred(replace(TINY, separate_attention_until=separate_attention_until))
        nn.init.zeros_(model.blocks[2].attention["shared"].projection.weight)
        fused = model.fuse(model.embed_image(torch.randn(2, 3, 24, 32)), model.embed_text(ids, ids > 0))
        assert torch.allclose(fused.text[0], fused.text[1]) == is_apart


@pytest.mark.parametrize(("vl_expert_start", "separate_attention_until"), [(2, 3), (1, 2), (3, 3)])
def test_separate_attention_ends_below_the_last_layer_and_the_joint_experts(
    vl_expert_start: int, separate_attention_until: int
) -> None:
    with pytest.raises(
        ValueError,
        match=f"separate_attention_until is {separate_attention_until}.*give at most {min(vl_expert_start, 2)}",
    ):
        replace(TINY, vl_expert_start=vl_expert_start, separate_attention_until=separate_attention_until).build()


def test_width_and_heads_must_fit() -> None:
    with pytest.raises(ValueError, match="width 16 cannot be split over 3 heads"):
        replace(TINY, heads=3).build()
    with pytest.raises(ValueError, match="power of two, not 12"):
        replace(TINY, patch_size=12, image_size=(24, 24), stem="convolution").build()


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_convolutions_give_one_vector_per_patch(patch: int) -> None:
    model = stirred(replace(TINY, patch_size=patch, stem="convolution", image_size=(8, 16)))
    assert model.embed_image(torch.randn(1, 3, 8, 16)).states[0].shape == (1, 1 + 8 * 16 // patch**2, 16)
