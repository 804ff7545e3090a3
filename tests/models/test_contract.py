"""What every model promises, whatever lies behind the four verbs. A new model adds a line to ``MODELS``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dualfuse.layers.embeddings import MaskedPatches
from dualfuse.models.base import ModelConfig, Tokens, VisionLanguageModel
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig
from dualfuse.models.vlmo import InitConfig, VLMo, VLMoConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

SIZE, LONGEST = (16, 24), 9  # what all models here are made for
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
    text=RobertaConfig(width=16, depth=4, heads=2, feed_forward=32, vocab_size=50, text_length=LONGEST, pad_id=0),
    width=16,
    heads=2,
    feed_forward=32,
    layers=3,
    itc_image_feature="transformed",
    image_slots=2,
    dropout=0.0,
)
MODELS: dict[str, ModelConfig] = {
    "vlmo-relative": VLMO,
    "vlmo-absolute": replace(VLMO, positions="absolute", init=InitConfig(layer_scale=0.0)),
    "vlmo-shared-expert": replace(VLMO, experts="shared"),
    "vlmo-no-both-expert": replace(VLMO, vl_expert_start=3),
    "vlmo-all-both-experts": replace(VLMO, vl_expert_start=0),
    "vlmo-separate-attention": replace(VLMO, separate_attention_until=2),
    "vlmo-separate-absolute": replace(VLMO, separate_attention_until=1, positions="absolute"),
    "vlmo-convolutions": replace(VLMO, stem="convolution"),
    "vlmo-two-slots": replace(VLMO, image_slots=2),
    "bridgetower": BRIDGETOWER,
    "bridgetower-interpolate": replace(BRIDGETOWER, bridge="interpolate", shared_transform=False),
    "bridgetower-two-bridged-one-plain": replace(BRIDGETOWER, tower_layers=(2, 0)),
    "bridgetower-tower-vectors": replace(
        BRIDGETOWER, text=replace(BRIDGETOWER.text, width=64), itc_image_feature="tower"
    ),
    "meter": replace(BRIDGETOWER, bridge="none"),
    "meter-all-layers": replace(BRIDGETOWER, bridge="none", all_layers=True),
}
LENGTHS = (3, 9, 1, 6)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> VisionLanguageModel:
    return stirred(MODELS[request.param])


def stirred(cfg: ModelConfig) -> VisionLanguageModel:
    """In float64, with every parameter far from its first value: what starts at zero must not hide a mistake."""
    torch.manual_seed(0)
    model = cfg.build().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def images(number: int = 4) -> Tensor:
    return torch.randn(number, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def texts(lengths: tuple[int, ...] = LENGTHS, width: int = LONGEST) -> tuple[Tensor, Tensor]:
    """Ids and mask; what stands in the padding is arbitrary."""
    ids = torch.randint(50, (len(lengths), width), generator=torch.Generator().manual_seed(2))
    return ids, torch.arange(width) < torch.tensor(lengths)[:, None]


def both(model: VisionLanguageModel) -> tuple[Tokens, Tokens]:
    return model.embed_image(images()), model.embed_text(*texts())


def same(one: Tensor, other: Tensor) -> None:
    assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_shapes(model: VisionLanguageModel) -> None:
    image, text = both(model)
    assert (image.modality, text.modality, len(image), len(text)) == ("image", "text", 4, 4)
    assert image.grid == (2, 3) and text.grid == ()
    assert image.mask.shape == (4, 7) and image.mask.all()
    assert torch.equal(text.mask, texts()[1])
    assert all(len(state) == 4 for tokens in (image, text) for state in tokens.states)
    for tokens in (image, text):
        assert model.encode(tokens).shape == (4, model.width)
        assert [view.shape for view in model.itc_features(tokens)] == [(4, model.width)] * model.num_itc_features
    fused = model.fuse(image, text)
    assert fused.pooled.shape == (4, model.fused_width)
    assert fused.text.shape == (4, LONGEST, model.text_width) and fused.image.shape == (4, 7, model.text_width)
    assert model.vocab_size == 50
    inside = {parameter for unit in model.fsdp_blocks() for parameter in unit.parameters()}
    assert inside and inside < set(model.parameters())
    assert {parameter for part in model.fusion_modules() for parameter in part.parameters()} < set(model.parameters())


def test_every_input_matters(model: VisionLanguageModel) -> None:
    """Without this the equalities below could hold because nothing depends on anything."""
    image, text = both(model)
    ids, mask = texts()
    ids[0, 2] += 1
    other_text, other_image = model.embed_text(ids % 50, mask), model.embed_image(images().flip(3))
    fused = model.fuse(image, text)
    for pair in ((image, other_text), (other_image, text)):
        changed = model.fuse(*pair)
        assert (changed.pooled - fused.pooled).abs().amax(1)[0] > 1e-7
        assert (changed.text - fused.text).abs().amax((1, 2))[0] > 1e-7
        assert (changed.image - fused.image).abs().amax((1, 2))[0] > 1e-7
    assert (model.encode(text) - model.encode(other_text)).abs().amax(1)[0] > 1e-7
    assert (model.encode(image) - model.encode(other_image)).abs().amax(1).min() > 1e-7


@pytest.mark.parametrize("row", range(4))
def test_padding_never_changes_an_answer(model: VisionLanguageModel, row: int) -> None:
    """Nor does the rest of the batch: each row equals the same row alone, cut to its own length."""
    image, text = both(model)
    ids, mask = texts()
    length = LENGTHS[row]
    one_image = model.embed_image(images()[row : row + 1])
    one_text = model.embed_text(ids[row : row + 1, :length], mask[row : row + 1, :length])
    for tokens, alone in ((image, one_image), (text, one_text)):
        for view, view_alone in zip(model.itc_features(tokens), model.itc_features(alone), strict=True):
            same(view[row], view_alone[0])
        same(model.encode(tokens)[row], model.encode(alone)[0])
    fused, alone = model.fuse(image, text), model.fuse(one_image, one_text)
    same(fused.pooled[row], alone.pooled[0])
    same(fused.text[row, :length], alone.text[0])
    same(fused.image[row], alone.image[0])


def test_what_stands_in_the_padding_is_never_read(model: VisionLanguageModel) -> None:
    ids, mask = texts()
    image, text = both(model)
    other = model.embed_text(torch.where(mask, ids, (ids + 7) % 50), mask)
    same(model.encode(text), model.encode(other))
    fused, refused = model.fuse(image, text), model.fuse(image, other)
    same(fused.pooled, refused.pooled)
    same(fused.image, refused.image)
    same(fused.text[mask], refused.text[mask])


def test_taking_rows_is_indexing_the_inputs(model: VisionLanguageModel) -> None:
    image, text = both(model)
    ids, mask = texts()
    index = torch.tensor([2, 0, 2, 3, 1])
    expected = model.embed_image(images()[index]), model.embed_text(ids[index], mask[index])
    for taken, wanted in zip((image.take(index), text.take(index)), expected, strict=True):
        assert (taken.modality, taken.grid, len(taken)) == (wanted.modality, wanted.grid, 5)
        assert torch.equal(taken.mask, wanted.mask)
        for one, other in zip(taken.states, wanted.states, strict=True):
            same(one, other)


def test_joining_puts_parts_under_each_other(model: VisionLanguageModel) -> None:
    for tokens in both(model):
        parts = [tokens.take(torch.tensor(rows, dtype=torch.long)) for rows in ([0, 1, 2], [], [3])]
        joined = Tokens.join(parts)
        assert (joined.modality, joined.grid) == (tokens.modality, tokens.grid)
        assert torch.equal(joined.mask, tokens.mask)
        assert all(torch.equal(one, other) for one, other in zip(joined.states, tokens.states, strict=True))


def test_weights_round_trip(model: VisionLanguageModel, request: pytest.FixtureRequest) -> None:
    other = MODELS[request.node.callspec.params["model"]].build().double().eval()
    other.load_state_dict(model.state_dict())
    fused, again = (one.fuse(*both(one)) for one in (model, other))
    assert torch.equal(fused.pooled, again.pooled) and torch.equal(fused.text, again.text)
    for tokens in both(model):
        assert torch.equal(model.encode(tokens), other.encode(tokens))


@pytest.mark.parametrize("rows", [[[1, 2], [8, 0], [0, 0], [5, 3]], [[2], [8], [0], [5]], [[], [], [], []]])
def test_wanted_rows_are_those_of_the_whole(model: VisionLanguageModel, rows: list[list[int]]) -> None:
    image, text = both(model)
    wanted = torch.tensor(rows, dtype=torch.long).view(4, -1)
    whole, some = model.fuse(image, text), model.fuse(image, text, positions=wanted)
    same(some.pooled, whole.pooled)
    same(some.text, torch.stack([states[index] for states, index in zip(whole.text, wanted, strict=True)]))
    assert some.image.shape == (4, 0, model.text_width)


def test_the_first_view_is_the_plain_vector(model: VisionLanguageModel) -> None:
    for tokens in both(model):
        first, *others = model.itc_features(tokens)
        same(first, model.encode(tokens))
        assert all((first - other).abs().max() > 1e-3 for other in others)


@pytest.mark.parametrize("size", [(8, 8), (24, 16), (40, 8), (32, 48)])
def test_pictures_of_other_sizes(model: VisionLanguageModel, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    tokens = model.embed_image(images)
    patches = size[0] // 8 * size[1] // 8
    assert tokens.grid == (size[0] // 8, size[1] // 8) and tokens.mask.shape == (2, 1 + patches)
    assert model.encode(tokens).isfinite().all()
    fused = model.fuse(tokens, model.embed_text(*texts((3, 9))))
    assert fused.pooled.isfinite().all() and fused.image.shape[:2] == (2, 1 + patches)


def test_a_text_longer_than_the_model_knows_is_refused(model: VisionLanguageModel) -> None:
    ids, mask = torch.ones(1, LONGEST + 1, dtype=torch.long), torch.ones(1, LONGEST + 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"a text of 10 tokens is longer than the 9"):
        model.encode(model.embed_text(ids, mask))
    with pytest.raises(ValueError, match=r"a text of 10 tokens is longer than the 9"):
        model.fuse(model.embed_image(images(1)), model.embed_text(ids, mask))


@pytest.mark.parametrize("size", [(16, 20), (12, 24)])
def test_a_picture_that_cannot_be_cut_is_refused(model: VisionLanguageModel, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels .* multiples of 8"):
        model.embed_image(torch.zeros(1, 3, *size, dtype=torch.float64))


def test_every_parameter_learns_from_pairs(model: VisionLanguageModel) -> None:
    ids, mask = texts()
    task = PairsConfig().build(model).double()
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
    still = [name for name, parameter in task.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert still == []


HIDDEN = torch.tensor([[0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 1], [0] * 6, [1] * 6]).bool()


@pytest.fixture(params=[name for name in MODELS if name.startswith("vlmo")])
def vlmo(request: pytest.FixtureRequest) -> VLMo:
    return stirred(MODELS[request.param])


def test_states_are_those_of_the_whole(vlmo: VLMo) -> None:
    """Against the blocks run one by one, on all rows."""
    rows = torch.tensor([[3, 0], [1, 1], [0, 0], [5, 2]])
    last = vlmo.blocks[-1]
    for tokens in both(vlmo):
        inputs = []
        handle = last.register_forward_pre_hook(lambda *given, into=inputs: into.extend(given[1:]), with_kwargs=True)
        some = vlmo.token_states(tokens, rows)
        handle.remove()
        (x, _), known = inputs
        whole = vlmo.norm(last(x, ((tokens.modality, x.shape[1]),), mask=known["mask"], bias=known["bias"]))
        same(some, torch.stack([states[index] for states, index in zip(whole, rows, strict=True)]))
        same(vlmo.encode(tokens), whole[:, 0])
        assert vlmo.token_states(tokens, rows[:, :0]).shape == (4, 0, vlmo.width)


def test_padding_never_changes_a_state(vlmo: VLMo) -> None:
    ids, mask = texts()
    rows = torch.tensor([[2, 0, 1]])
    text = vlmo.token_states(vlmo.embed_text(ids, mask), rows.expand(4, -1))
    alone = vlmo.token_states(vlmo.embed_text(ids[:1, :3], mask[:1, :3]), rows)
    same(text[:1], alone)


def test_hidden_patches_are_never_seen(vlmo: VLMo) -> None:
    token = torch.randn(1, 1, 16, dtype=torch.float64)
    pixels_given, other = images(), images().clone()
    pixels = HIDDEN.view(4, 1, 2, 3).repeat_interleave(8, 2).repeat_interleave(8, 3).expand(4, 3, *SIZE)
    other[pixels] += 5.0
    first = vlmo.embed_masked_image(pixels_given, MaskedPatches(HIDDEN, token))
    second = vlmo.embed_masked_image(other, MaskedPatches(HIDDEN, token))
    assert torch.equal(first.states[0], second.states[0])
    assert (first.modality, first.grid) == ("image", (2, 3)) and first.mask.all()
    changed = vlmo.embed_masked_image(pixels_given, MaskedPatches(HIDDEN, token + 1)).states[0] - first.states[0]
    same(changed[:, 1:], HIDDEN[..., None].double().expand(-1, -1, 16))
    assert not changed[:, 0].any()


def test_nothing_hidden_is_the_plain_picture(vlmo: VLMo) -> None:
    nothing = MaskedPatches(torch.zeros(4, 6, dtype=torch.bool), torch.randn(1, 1, 16, dtype=torch.float64))
    masked, plain = vlmo.embed_masked_image(images(), nothing), vlmo.embed_image(images())
    assert torch.equal(masked.states[0], plain.states[0])


def test_a_mask_for_other_patches_is_refused() -> None:
    vlmo = stirred(VLMO)
    with pytest.raises(ValueError, match=r"5 patches can be hidden, but the images have 2 x 3"):
        vlmo.embed_masked_image(images(), MaskedPatches(HIDDEN[:, :5], torch.zeros(1, 1, 16)))


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("vlmo")])
def test_towers_learn_no_modality_alone(name: str) -> None:
    model = stirred(MODELS[name])
    with pytest.raises(ValueError, match="BridgeTower cannot train on masked images"):
        model.token_states(both(model)[0], torch.zeros(4, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="use a VLMo"):
        model.embed_masked_image(images(), MaskedPatches(HIDDEN, torch.zeros(1, 1, 16)))
