"""The contract that every model keeps. A new model or tower adds a line to ``MODELS``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dualfuse.layers.embeddings import MaskedPatches
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.base import ModelConfig, Tokens, VisionLanguageModel
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.bert import BertConfig
from dualfuse.models.towers.clip_text import CLIPTextConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig
from dualfuse.models.towers.siglip import SiglipTextConfig, SiglipViTConfig
from dualfuse.models.vlmo import InitConfig, VLMo, VLMoConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.testing import check_model

SIZE, TEXT_LENGTH = (16, 24), 9  # the sizes that all models here are built for
VLMO = VLMoConfig(
    width=16,
    depth=3,
    heads=2,
    vl_expert_start=2,
    patch_size=8,
    image_size=(16, 24),
    vocab_size=50,
    text_length=9,
    drop_path=0.0,
)
BRIDGETOWER = BridgeTowerConfig(
    image=CLIPViTConfig(width=64, depth=3, patch_size=8, image_size=SIZE),
    text=RobertaConfig(width=16, depth=4, heads=2, feed_forward=32, vocab_size=50, text_length=TEXT_LENGTH, pad_id=0),
    width=16,
    heads=2,
    feed_forward=32,
    layers=3,
    itc_image_feature="transformed",
    image_slots=2,
    dropout=0.0,
)
CLIP_VIT = replace(CLIPViTConfig(width=24, depth=3, heads=2), patch_size=8, image_size=SIZE, activation="gelu")
CLIP_TEXT = CLIPTextConfig(width=16, depth=4, heads=2, feed_forward=32, vocab_size=50, text_length=TEXT_LENGTH)
SIGLIP_VIT = SiglipViTConfig(width=24, depth=3, heads=2, feed_forward=32, patch_size=8, image_size=SIZE)
SIGLIP_TEXT = SiglipTextConfig(
    width=16, depth=4, heads=2, feed_forward=32, vocab_size=50, text_length=TEXT_LENGTH, projection_width=24, pad_id=3
)
BERT = BertConfig(width=16, depth=3, heads=2, feed_forward=32, vocab_size=50, text_length=TEXT_LENGTH)
MODELS: dict[str, ModelConfig] = {
    "vlmo-relative": VLMO,
    "vlmo-absolute": replace(VLMO, positions="absolute", init=InitConfig(layer_scale=0.0)),
    "vlmo-shared-expert": replace(VLMO, experts="shared"),
    "vlmo-no-vl-expert": replace(VLMO, vl_expert_start=3),
    "vlmo-all-vl-experts": replace(VLMO, vl_expert_start=0),
    "vlmo-separate-attention": replace(VLMO, separate_attention_until=2),
    "vlmo-separate-absolute": replace(VLMO, separate_attention_until=1, positions="absolute"),
    "vlmo-convolutions": replace(VLMO, stem="convolution"),
    "vlmo-two-slots": replace(VLMO, image_slots=2),
    "bridgetower": BRIDGETOWER,
    "bridgetower-interpolate": replace(BRIDGETOWER, bridge="interpolate", shared_transform=False),
    "bridgetower-two-layers-of-three-bridged": replace(BRIDGETOWER, tower_layers=(2, 0)),
    "bridgetower-itc-on-tower-states": replace(
        BRIDGETOWER, text=replace(BRIDGETOWER.text, width=64), itc_image_feature="tower"
    ),
    "bridgetower-clip": replace(BRIDGETOWER, image=CLIP_VIT, text=CLIP_TEXT, itc_image_feature="tower"),
    "bridgetower-siglip": replace(BRIDGETOWER, image=SIGLIP_VIT, text=SIGLIP_TEXT, itc_image_feature="tower"),
    "bridgetower-over-bert": replace(BRIDGETOWER, text=BERT),
    "bridgetower-over-bert-first-token": replace(BRIDGETOWER, text=replace(BERT, pooling="first")),
    "meter": replace(BRIDGETOWER, bridge="none"),
    "meter-all-layers": replace(BRIDGETOWER, bridge="none", all_layers=True),
}
LENGTHS = (3, 9, 1, 6)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> VisionLanguageModel:
    return randomized(MODELS[request.param])


def randomized(cfg: ModelConfig) -> VisionLanguageModel:
    """Return the model in float64 with every parameter random: initial zeros would hide mistakes."""
    torch.manual_seed(0)
    model = cfg.build().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def images(number: int = 4) -> Tensor:
    return torch.randn(number, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def texts(lengths: tuple[int, ...] = LENGTHS, width: int = TEXT_LENGTH) -> tuple[Tensor, Tensor]:
    """Return ids and mask; the ids of padding are arbitrary."""
    ids = torch.randint(50, (len(lengths), width), generator=torch.Generator().manual_seed(2))
    return ids, torch.arange(width) < torch.tensor(lengths)[:, None]


def both(model: VisionLanguageModel) -> tuple[Tokens, Tokens]:
    return model.embed_image(images()), model.embed_text(*texts())


def same(one: Tensor, other: Tensor) -> None:
    assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_contract(name: str) -> None:
    check_model(MODELS[name], image_size=SIZE, text_length=TEXT_LENGTH)


@pytest.mark.parametrize("size", [(8, 8), (24, 16), (40, 8), (32, 48)])
def test_images_of_other_sizes(model: VisionLanguageModel, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    tokens = model.embed_image(images)
    patches = size[0] // 8 * size[1] // 8
    assert tokens.grid == (size[0] // 8, size[1] // 8) and tokens.mask.shape == (2, 1 + patches)
    assert model.encode(tokens).isfinite().all()
    fused = model.fuse(tokens, model.embed_text(*texts((3, 9))))
    assert fused.pooled.isfinite().all() and fused.image.shape[:2] == (2, 1 + patches)


def test_a_text_longer_than_the_positions_is_refused(model: VisionLanguageModel) -> None:
    ids, mask = torch.ones(1, TEXT_LENGTH + 1, dtype=torch.long), torch.ones(1, TEXT_LENGTH + 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"a text of 10 tokens is longer than the 9"):
        model.encode(model.embed_text(ids, mask))
    with pytest.raises(ValueError, match=r"a text of 10 tokens is longer than the 9"):
        model.fuse(model.embed_image(images(1)), model.embed_text(ids, mask))


@pytest.mark.parametrize("size", [(16, 20), (12, 24)])
def test_an_image_that_is_not_a_multiple_of_the_patch_is_refused(
    model: VisionLanguageModel, size: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels .* multiples of 8"):
        model.embed_image(torch.zeros(1, 3, *size, dtype=torch.float64))


def test_every_parameter_has_a_gradient_from_pairs(model: VisionLanguageModel) -> None:
    ids, mask = texts()
    task = PairsConfig(itc_head=ITCHeadConfig(width=16)).build(model).double()
    output = task(
        {
            "image": images(),
            "ids": ids,
            "mask": mask,
            "masked_ids": (ids + 1) % 50,
            "positions": torch.tensor([[1, 2], [8, 1], [0, 0], [5, 0]]),
            "targets": torch.tensor([[3, 4], [5, 6], [7, -100], [9, -100]]),
            "image_id": torch.arange(4),
            "text_id": torch.arange(4),
        }
    )
    output.loss.backward()
    unused = [name for name, parameter in task.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert unused == []


HIDDEN = torch.tensor([[0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 1], [0] * 6, [1] * 6]).bool()


@pytest.fixture(params=[name for name in MODELS if name.startswith("vlmo")])
def vlmo(request: pytest.FixtureRequest) -> VLMo:
    return randomized(MODELS[request.param])


def test_token_states_at_positions_equal_those_of_all_positions(vlmo: VLMo) -> None:
    """Compare with the last block run on all positions."""
    positions = torch.tensor([[3, 0], [1, 1], [0, 0], [5, 2]])
    last = vlmo.blocks[-1]
    for tokens in both(vlmo):
        inputs = []
        handle = last.register_forward_pre_hook(lambda *args, into=inputs: into.extend(args[1:]), with_kwargs=True)
        some = vlmo.token_states(tokens, positions)
        handle.remove()
        (x, _), arguments = inputs
        every = vlmo.norm(last(x, ((tokens.modality, x.shape[1]),), mask=arguments["mask"], bias=arguments["bias"]))
        same(some, torch.stack([states[index] for states, index in zip(every, positions, strict=True)]))
        same(vlmo.encode(tokens), every[:, 0])
        assert vlmo.token_states(tokens, positions[:, :0]).shape == (4, 0, vlmo.width)


def test_padding_does_not_change_a_token_state(vlmo: VLMo) -> None:
    ids, mask = texts()
    positions = torch.tensor([[2, 0, 1]])
    text = vlmo.token_states(vlmo.embed_text(ids, mask), positions.expand(4, -1))
    alone = vlmo.token_states(vlmo.embed_text(ids[:1, :3], mask[:1, :3]), positions)
    same(text[:1], alone)


def test_pixels_of_hidden_patches_are_not_read(vlmo: VLMo) -> None:
    token = torch.randn(1, 1, 16, dtype=torch.float64)
    plain, other = images(), images().clone()
    pixels = HIDDEN.view(4, 1, 2, 3).repeat_interleave(8, 2).repeat_interleave(8, 3).expand(4, 3, *SIZE)
    other[pixels] += 5.0
    first = vlmo.embed_masked_image(plain, MaskedPatches(HIDDEN, token))
    second = vlmo.embed_masked_image(other, MaskedPatches(HIDDEN, token))
    assert torch.equal(first.states[0], second.states[0])
    assert (first.modality, first.grid) == ("image", (2, 3)) and first.mask.all()
    changed = vlmo.embed_masked_image(plain, MaskedPatches(HIDDEN, token + 1)).states[0] - first.states[0]
    same(changed[:, 1:], HIDDEN[..., None].double().expand(-1, -1, 16))
    assert not changed[:, 0].any()


def test_a_mask_of_the_wrong_number_of_patches_is_refused() -> None:
    vlmo = randomized(VLMO)
    with pytest.raises(ValueError, match=r"the mask has 5 patches, but the images have 2 x 3"):
        vlmo.embed_masked_image(images(), MaskedPatches(HIDDEN[:, :5], torch.zeros(1, 1, 16)))


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("vlmo")])
def test_bridgetower_refuses_masked_images_and_token_states(name: str) -> None:
    model = randomized(MODELS[name])
    with pytest.raises(ValueError, match="BridgeTower cannot train on masked images"):
        model.token_states(both(model)[0], torch.zeros(4, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="use a VLMo"):
        model.embed_masked_image(images(), MaskedPatches(HIDDEN, torch.zeros(1, 1, 16)))
