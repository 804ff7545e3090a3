"""The towers: sizes, configs that are refused, and layers that are not run because nothing reads them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dualfuse.layers.embeddings import resize_positions
from dualfuse.models.bridgetower import BridgeTower, BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViT, CLIPViTConfig
from dualfuse.models.towers.roberta import Roberta, RobertaConfig, RobertaEmbeddings

IMAGE = CLIPViTConfig(width=64, depth=4, patch_size=8, image_size=(16, 24))
TEXT = RobertaConfig(width=64, depth=4, heads=2, feed_forward=32, vocab_size=50, text_length=9)
MODEL = BridgeTowerConfig(image=IMAGE, text=TEXT, width=64, heads=2, feed_forward=32, layers=3, dropout=0.0)
METER = replace(MODEL, bridge="none")
IDS = torch.tensor([[0, 7, 8, 9, 2], [0, 5, 2, 1, 1]])
MASK = IDS != 1
IMAGES = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def built(cfg: BridgeTowerConfig) -> BridgeTower:
    torch.manual_seed(0)
    return cfg.build().eval()


def counted(model: nn.Module) -> Counter[str]:
    """Count the calls of every module from here on."""
    calls: Counter[str] = Counter()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


def layers(calls: Counter[str], prefix: str) -> list[int]:
    """Return the numbers of the layers below ``prefix`` that were called, each once."""
    numbers = [name.removeprefix(prefix) for name in calls if name.startswith(prefix)]
    called = sorted(int(number) for number in numbers if number.isdigit())
    assert all(calls[f"{prefix}{number}"] == 1 for number in called)
    return called


@pytest.mark.parametrize("rows", [torch.tensor([[1], [2]]), torch.zeros(2, 0, dtype=torch.long)], ids=["words", "none"])
@torch.no_grad()
def test_without_pooled_the_last_image_layer_is_not_run(rows: Tensor) -> None:
    model = built(MODEL)
    image, text = model.embed_image(IMAGES), model.embed_text(IDS, MASK)
    calls = counted(model)
    fused = model.fuse(image, text, rows)
    assert layers(calls, "layers.text.") == [0, 1, 2]
    assert layers(calls, "layers.image.") == [0, 1]
    assert not calls["poolers.text"] and not calls["poolers.image"]
    assert fused.pooled is fused.pooled
    assert layers(calls, "layers.image.") == [0, 1, 2]
    assert calls["poolers.text"] == calls["poolers.image"] == 1


@torch.no_grad()
def test_the_last_layer_computes_the_requested_positions() -> None:
    """The first token, for the pooler, and the requested ones; of the image its class token alone."""
    model = built(MODEL)
    image, text = model.embed_image(IMAGES), model.embed_text(IDS, MASK)
    lengths: dict[str, int] = {}
    for modality in ("text", "image"):
        for number, layer in enumerate(model.layers[modality]):
            key = f"{modality} {number}"
            layer.up.register_forward_hook(lambda _, args, __, key=key: lengths.update({key: args[0].shape[1]}))
    fused = model.fuse(image, text, torch.tensor([[1, 3], [2, 0]]))
    assert fused.pooled.shape == (2, 128)
    assert lengths == {"text 0": 5, "text 1": 5, "text 2": 3, "image 0": 7, "image 1": 7, "image 2": 1}


@torch.no_grad()
def test_towers_run_once_however_often_their_tokens_are_fused() -> None:
    model = built(MODEL)
    image, text = model.embed_image(IMAGES), model.embed_text(IDS, MASK)
    calls = counted(model)
    for _ in range(2):
        assert model.fuse(image.take(torch.tensor([1, 0])), text).pooled.isfinite().all()
        assert model.encode(image).isfinite().all()
    assert not any(name.startswith(("image_tower", "text_tower", "transforms")) for name in calls)
    assert calls["layers.text.2"] == 2


@pytest.mark.parametrize("requested", [(1,), (0, 2), (2, 0)])
@torch.no_grad()
def test_layers_above_the_highest_requested_one_are_not_run(requested: tuple[int, ...]) -> None:
    """States come in the order of the request."""
    image, text = CLIPViT(IMAGE).eval(), Roberta(TEXT, dropout=0.1).eval()
    all_images, grid = (output := image(IMAGES, range(4))).states, output.grid
    all_texts = text(IDS, MASK, range(4)).states
    assert grid == (2, 3) and len(all_images) == len(all_texts) == 4
    image_calls, text_calls = counted(image), counted(text)
    images, texts = image(IMAGES, requested).states, text(IDS, MASK, requested).states
    assert layers(image_calls, "blocks.") == layers(text_calls, "layers.") == list(range(1 + max(requested)))
    assert image_calls["norm_after"] == len(requested)
    for index, number in enumerate(requested):
        assert torch.equal(images[index], all_images[number])
        assert torch.equal(texts[index], all_texts[number])


@torch.no_grad()
def test_returned_image_states_are_normalized_and_passed_on_states_are_not() -> None:
    tower = CLIPViT(IMAGE).eval()
    nn.init.constant_(tower.norm_after.bias, 3.0)
    x, _ = tower.embed(IMAGES)
    states = tower(IMAGES, range(4)).states
    for block, state in zip(tower.blocks, states, strict=True):
        x = block(x)
        assert_close(state, tower.norm_after(x))


@torch.no_grad()
def test_towers_of_different_depth() -> None:
    """The top layer of each tower feeds METER, whose published image tower has 11 blocks."""
    model = built(replace(METER, image=replace(IMAGE, depth=3)))
    calls = counted(model)
    image, text = model.embed_image(IMAGES), model.embed_text(IDS, MASK)
    assert layers(calls, "image_tower.blocks.") == [0, 1, 2] and layers(calls, "text_tower.layers.") == [0, 1, 2, 3]
    assert calls["image_tower.norm_after"] == calls["transforms.image"] == calls["transforms.text"] == 1
    assert len(image.states) == len(text.states) == 2
    assert layers(calls, "layers.image.") == []
    assert model.fuse(image, text).pooled.shape == (2, 128)
    deeper = built(METER)
    deeper.load_state_dict(model.state_dict(), strict=False)
    assert (model.encode(image) - deeper.encode(deeper.embed_image(IMAGES))).abs().max() > 1e-3
    published = BridgeTowerConfig(image=CLIPViTConfig(depth=11), bridge="none")
    with torch.device("meta"):
        assert len(published.build().image_tower.blocks) == 11


@torch.no_grad()
def test_tower_layers_choose_the_layers_that_feed() -> None:
    """They are counted down from the top; the top itself always runs, for ITC."""
    model = built(replace(MODEL, tower_layers=(3, 1)))
    image, text = model.embed_image(IMAGES), model.embed_text(IDS, MASK)
    images = model.image_tower(IMAGES, (0, 2, 3)).states
    texts = model.text_tower(IDS, MASK, (0, 2, 3)).states
    for tokens, states, row in ((image, images, 1), (text, texts, 0)):
        alone, *fed = tokens.states
        assert torch.equal(alone, states[2][:, :1])
        assert len(fed) == 2
        for feed, state in zip(fed, states, strict=False):
            assert_close(feed, model.transforms[tokens.modality](state) + model.types.weight[row])
    assert len(model.bridges["text"]) == len(model.bridges["image"]) == 1
    assert BridgeTowerConfig().resolved_tower_layers == (5, 4, 3, 2, 1, 0) and METER.resolved_tower_layers == (0,)


@pytest.mark.parametrize(
    ("cfg", "changes", "message"),
    [
        (IMAGE, {"width": 96}, "width is 96, depth 4; give a multiple of 64, and 1 to 1000"),
        (IMAGE, {"depth": 0}, "width is 64, depth 0; give a multiple of 64, and 1 to 1000"),
        (TEXT, {"depth": 1001}, "depth 1001; .* 1 to 1000"),
        (MODEL, {"layers": 1001}, "layers is 1001; give 1 to 1000"),
        (IMAGE, {"image_size": (16, 20)}, r"image_size \(16, 20\) is not a multiple of patch_size 8"),
        (IMAGE, {"image_size": (0, 16)}, r"image_size \(0, 16\) is not a multiple of patch_size 8"),
        (MODEL, {"layers": 5}, r"5 cross-modal layers cannot be fed by the layers \(4, 3, 2, 1, 0\) .* from 0 to 3"),
        (MODEL, {"layers": 0}, "0 cross-modal layers cannot be fed"),
        (MODEL, {"tower_layers": (3, 2, 1, 0)}, r"3 cross-modal layers cannot be fed by the layers \(3, 2, 1, 0\)"),
        (MODEL, {"tower_layers": (4, 0)}, r"fed by the layers \(4, 0\) below the top of towers that have 4"),
        (MODEL, {"tower_layers": (1, -1)}, r"fed by the layers \(1, -1\)"),
        (MODEL, {"image": replace(IMAGE, depth=2)}, "towers that have 2; give at most .* each from 0 to 1"),
        (METER, {"tower_layers": (2, 1, 0)}, r'bridge="none" .* remove tower_layers=\(2, 1, 0\)'),
        (MODEL, {"all_layers": True}, 'all_layers is an option of METER: it needs bridge="none"'),
        (
            MODEL,
            {"itc_image_feature": "transformed", "tower_layers": (2, 1)},
            r"needs tower_layers that end in the top layer .* not \(2, 1\)",
        ),
    ],
)
def test_impossible_configs_are_refused(cfg: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(cfg, **changes)


@torch.no_grad()
def test_towers_of_two_widths_encode_to_their_own_widths() -> None:
    model = built(replace(MODEL, text=replace(TEXT, width=32)))
    image, text = model.embed_image(IMAGES), model.embed_text(IDS, MASK)
    assert (model.encode(image).shape, model.encode(text).shape) == ((2, 64), (2, 32))
    assert model.encode_widths == (64, 32)
    assert model.fuse(image, text).pooled.shape == (2, 128)


def test_a_slot_beyond_image_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="slot 1: image_slots of this model is 1"):
        built(MODEL).embed_image(IMAGES, slot=1)


def test_a_text_longer_than_the_positions_is_refused() -> None:
    tower = Roberta(TEXT, dropout=0.0).eval()
    longest = torch.full((1, TEXT.text_length), 5)
    assert tower(longest, longest > 0, (0,)).states[0].isfinite().all()
    longer = torch.full((1, TEXT.text_length + 1), 5)
    with pytest.raises(ValueError, match=r"a text of 10 tokens is longer than the 9 positions .* set text_length"):
        tower(longer, longer > 0, (0,))


@pytest.mark.parametrize("size", [(16, 20), (12, 24), (4, 8)])
def test_an_image_that_is_not_a_multiple_of_the_patch_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels cannot be cut .* multiples of 8"):
        CLIPViT(IMAGE).embed(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("pad", [0, 1, 7])
@torch.no_grad()
def test_positions_number_the_tokens(pad: int) -> None:
    """They start at pad + 1; padding has the position pad everywhere."""
    words = RobertaEmbeddings(replace(TEXT, pad_id=pad), dropout=0.1).eval()
    assert words.position.num_embeddings == TEXT.text_length + pad + 1
    ids = torch.tensor([[10, 11, pad, pad], [pad, 12, pad, 13]])
    positions = [[pad + 1, pad + 2, pad, pad], [pad, pad + 1, pad, pad + 2]]
    for row in range(2):
        for column in range(4):
            summed = words.word.weight[ids[row, column]] + words.position.weight[positions[row][column]]
            expected = words.norm(summed + words.token_type.weight[0])
            assert_close(words(ids)[row, column], expected)


@torch.no_grad()
def test_patches_follow_the_class_token_row_by_row() -> None:
    """A patch embedding is its pixels times the projection, plus its position, normalized."""
    tower = CLIPViT(IMAGE).eval()
    x, grid = tower.embed(IMAGES)
    assert grid == (2, 3) and x.shape == (2, 7, 64)
    assert_close(x[1, 0], tower.norm_before(tower.class_embedding + tower.positions[0]))
    for number in range(6):
        top, left = 8 * (number // 3), 8 * (number % 3)
        pixels = IMAGES[1, :, top : top + 8, left : left + 8]
        patch = tower.projection.weight.flatten(1) @ pixels.flatten()
        expected = tower.norm_before(patch + tower.positions[1 + number])
        assert_close(x[1, 1 + number], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_images_of_other_sizes_use_resized_positions() -> None:
    tower = CLIPViT(IMAGE).eval()
    x, grid = tower.embed(torch.zeros(1, 3, 32, 16))
    assert grid == (4, 2)
    positions = resize_positions(tower.positions[None], (2, 3), (4, 2))[0]
    positions[0] += tower.class_embedding
    assert_close(x[0], tower.norm_before(positions))


@torch.no_grad()
def test_a_tower_with_a_convolutional_stem() -> None:
    model = built(replace(MODEL, image=replace(IMAGE, stem="convolution")))
    image = model.embed_image(IMAGES)
    assert image.grid == (2, 3) and model.fuse(image, model.embed_text(IDS, MASK)).pooled.isfinite().all()
