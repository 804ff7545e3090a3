"""VLMo: other image sizes, image slots, the second ITC feature, and configs that are refused."""

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


def randomized(cfg: VLMoConfig) -> VLMo:
    torch.manual_seed(0)
    model = cfg.build().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def pooled(model: VLMo, images: Tensor) -> Tensor:
    ids = torch.tensor([[2, 3, 4]]).expand(len(images), -1)
    return model.fuse(model.embed_image(images), model.embed_text(ids, torch.ones_like(ids))).pooled


def test_another_image_size_equals_a_model_of_that_size() -> None:
    model, images = randomized(TINY), torch.randn(2, 3, 40, 16)
    state = model.state_dict()
    state["relative_bias.table"] = resize_table(state["relative_bias.table"], (3, 4), (5, 2))
    other = replace(TINY, image_size=(40, 16)).build().eval()
    other.load_state_dict(state)
    assert_close(pooled(model, images), pooled(other, images))
    assert_close(model.encode(model.embed_image(images)), other.encode(other.embed_image(images)))


def test_another_image_size_with_absolute_positions() -> None:
    model, images = randomized(replace(TINY, positions="absolute")), torch.randn(2, 3, 40, 16)
    state = model.state_dict()
    state["patches.position"] = resize_positions(state["patches.position"], (3, 4), (5, 2))
    assert not torch.equal(state["patches.position"][0, 1:].std(0), torch.zeros(16))
    other = replace(TINY, positions="absolute", image_size=(40, 16)).build().eval()
    other.load_state_dict(state)
    assert_close(pooled(model, images), pooled(other, images))


def test_resized_positions_keep_the_class_token_and_a_linear_slope() -> None:
    """Away from the border, bicubic interpolation of a linear slope gives the slope at the centers of the patches."""
    slope = torch.arange(8.0)[:, None, None] + 100 * torch.arange(10.0)[None, :, None]
    position = torch.cat([torch.full((1, 1, 1), -7.0), slope.view(1, 80, 1)], dim=1)
    resized = resize_positions(position, (8, 10), (16, 5))
    assert resized[0, 0] == -7
    rows, columns = (torch.arange(16) + 0.5) / 2 - 0.5, (torch.arange(5) + 0.5) * 2 - 0.5
    expected = rows[:, None] + 100 * columns[None]
    assert_close(resized[0, 1:, 0].view(16, 5)[4:12, 1:4], expected[4:12, 1:4], atol=0.06, rtol=0)


@pytest.mark.parametrize(("positions", "name"), [("relative", "relative_bias.table"), ("absolute", "patches.position")])
@pytest.mark.parametrize("size", [(24, 32), (16, 48), (8, 8)])
def test_positions_have_gradients_from_images_of_any_size(positions: str, name: str, size: tuple[int, int]) -> None:
    model = randomized(replace(TINY, positions=positions))
    model.encode(model.embed_image(torch.randn(2, 3, *size))).sum().backward()
    gradient = model.get_parameter(name).grad
    assert gradient is not None and gradient.isfinite().all() and gradient.any()


def test_a_model_of_one_row_of_patches_takes_more() -> None:
    for size in ((8, 8), (8, 24)):
        model = randomized(replace(TINY, image_size=size))
        assert pooled(model, torch.randn(1, 3, 16, 32)).isfinite().all()


def test_slots_differ_by_their_type_embedding() -> None:
    model, images = randomized(replace(TINY, image_slots=2)), torch.randn(1, 3, 24, 32)
    first, second = model.embed_image(images), model.embed_image(images, slot=1)
    difference = (second.states[0] - first.states[0])[0]
    assert_close(difference, (model.types.weight[2] - model.types.weight[1]).expand_as(difference))
    with pytest.raises(ValueError, match="slot 2: image_slots of this model is 2"):
        model.embed_image(images, slot=2)
    with pytest.raises(ValueError, match="slot 1: image_slots of this model is 1"):
        randomized(TINY).embed_image(images, slot=1)


def test_the_second_itc_feature_shares_the_lower_layers() -> None:
    """Vision-language experts change the second feature alone, image experts of upper layers the first alone."""
    model = randomized(TINY)
    tokens = model.embed_image(torch.randn(2, 3, 24, 32))
    first, second = model.itc_features(tokens)
    nn.init.normal_(model.blocks[2].experts["vl"].up.weight)
    first_after, second_after = model.itc_features(tokens)
    assert torch.equal(first, first_after) and not torch.allclose(second, second_after)
    nn.init.normal_(model.blocks[2].experts["image"].up.weight)
    assert torch.equal(model.itc_features(tokens)[1], second_after) and not torch.allclose(model.encode(tokens), first)
    nn.init.normal_(model.blocks[1].experts["image"].up.weight)
    assert not torch.allclose(model.itc_features(tokens)[1], second_after)


def test_separate_attention_does_not_mix_modalities() -> None:
    """Without the joint attention of the last layer, the text does not depend on the image."""
    ids = torch.tensor([[2, 3, 4], [2, 3, 4]])
    for separate_attention_until, is_separate in ((2, True), (1, False)):
        model = randomized(replace(TINY, separate_attention_until=separate_attention_until))
        nn.init.zeros_(model.blocks[2].attention["shared"].projection.weight)
        fused = model.fuse(model.embed_image(torch.randn(2, 3, 24, 32)), model.embed_text(ids, ids > 0))
        assert torch.allclose(fused.text[0], fused.text[1]) == is_separate


@pytest.mark.parametrize(("vl_expert_start", "separate_attention_until"), [(2, 3), (1, 2), (3, 3)])
def test_separate_attention_in_joint_layers_is_refused(vl_expert_start: int, separate_attention_until: int) -> None:
    with pytest.raises(
        ValueError,
        match=f"separate_attention_until is {separate_attention_until}.*give at most {min(vl_expert_start, 2)}",
    ):
        replace(TINY, vl_expert_start=vl_expert_start, separate_attention_until=separate_attention_until).build()


def test_impossible_widths_and_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="width 16 cannot be split over 3 heads"):
        replace(TINY, heads=3).build()
    with pytest.raises(ValueError, match="power of two, not 12"):
        replace(TINY, patch_size=12, image_size=(24, 24), stem="convolution").build()


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_convolutions_embed_each_patch(patch: int) -> None:
    model = randomized(replace(TINY, patch_size=patch, stem="convolution", image_size=(8, 16)))
    assert model.embed_image(torch.randn(1, 3, 8, 16)).states[0].shape == (1, 1 + 8 * 16 // patch**2, 16)
