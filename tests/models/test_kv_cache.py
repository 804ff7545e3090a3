"""Causal text: under the attention mask and with the cache, for several texts of one image in any order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import BRIDGETOWER, MODEL
from torch import Tensor, nn
from torch.testing import assert_close

from dualfuse.models.base import seq2seq_attention_mask
from dualfuse.models.kv_cache import KVCache
from dualfuse.models.vlmo import InitConfig, VLMo

TINY = replace(MODEL, depth=3, vl_expert_start=2, drop_path=0.0)
VARIANTS = {
    "relative": TINY,
    "shared-relative-bias": replace(TINY, share_relative_bias=True),
    "absolute": replace(TINY, positions="absolute", init=InitConfig(layer_scale=0.0)),
    "separate": replace(TINY, separate_attention_until=1),
    "separate-absolute": replace(TINY, separate_attention_until=2, positions="absolute"),
    "shared-expert": replace(TINY, experts="shared"),
    "no-vl-expert": replace(TINY, vl_expert_start=3),
}
PATCHES = 17


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> VLMo:
    torch.manual_seed(0)
    model = VARIANTS[request.param].build().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def images(number: int = 2) -> Tensor:
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def ids(rows: int, length: int) -> Tensor:
    return torch.randint(5, MODEL.vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))


def uncached(model: VLMo, images: Tensor, tokens: Tensor) -> Tensor:
    """Return the state of the last token, computed without a cache."""
    text = model.embed_text(tokens, torch.ones_like(tokens))
    attention_mask = seq2seq_attention_mask(tokens.shape[1], PATCHES)
    return model.fuse(model.embed_image(images), text, attention_mask=attention_mask).text[:, -1]


def test_seq2seq_attention_mask() -> None:
    assert seq2seq_attention_mask(3, 2).int().tolist() == [
        [1, 0, 0, 1, 1],
        [1, 1, 0, 1, 1],
        [1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1],
    ]


def test_states_do_not_depend_on_later_tokens(model: VLMo) -> None:
    """They do depend on earlier tokens and on the image."""
    tokens, image = ids(2, 8), model.embed_image(images())
    mask = torch.ones_like(tokens).bool()
    one = model.fuse(image, model.embed_text(tokens, mask), attention_mask=seq2seq_attention_mask(8, PATCHES))
    other = tokens.clone()
    other[:, 5] = (tokens[:, 5] - 5 + 1) % (MODEL.vocab_size - 5) + 5
    two = model.fuse(image, model.embed_text(other, mask), attention_mask=seq2seq_attention_mask(8, PATCHES))
    assert_close(one.text[:, :5], two.text[:, :5])
    assert_close(one.image, two.image)
    assert ((one.text[:, 5:] - two.text[:, 5:]).abs().amax(2) > 1e-5).all()
    flipped = model.fuse(
        model.embed_image(images().flip(3)),
        model.embed_text(tokens, mask),
        attention_mask=seq2seq_attention_mask(8, 17),
    )
    assert ((one.text - flipped.text).abs().amax(2) > 1e-5).all()


def test_padding_is_masked(model: VLMo) -> None:
    tokens, image = ids(2, 8), model.embed_image(images())
    text = model.embed_text(tokens, torch.arange(8) < torch.tensor([[3], [8]]))
    padded = model.fuse(image, text, attention_mask=seq2seq_attention_mask(8, PATCHES))
    alone = model.fuse(
        image.take(torch.tensor([0])),
        model.embed_text(tokens[:1, :3], torch.ones(1, 3)),
        attention_mask=seq2seq_attention_mask(3, PATCHES),
    )
    assert_close(padded.text[:1, :3], alone.text)
    assert_close(padded.image[:1], alone.image)


def test_cached_decoding_equals_full_computation(model: VLMo) -> None:
    """Three texts of two images are decoded as in beam search: a mask is read, replaced, and texts change order."""
    pixels, mask_id = images(), 4
    cache = model.prefill(model.embed_image(pixels), max_length=9).take(torch.tensor([0, 0, 1]))
    text_ids, image_index = ids(3, 1), torch.tensor([0, 0, 1])
    for step, order in enumerate(([0, 1, 2], [1, 1, 2], [0, 2, 1], [2, 0, 1], [0, 1, 2])):
        cache, text_ids, image_index = cache.take(torch.tensor(order)), text_ids[order], image_index[order]
        with_mask = torch.cat([text_ids, torch.full((3, 1), mask_id)], dim=1)
        state, cache = model.decode_step(cache, model.embed_text(with_mask, torch.ones_like(with_mask)))
        assert_close(state, uncached(model, pixels[image_index], with_mask), atol=1e-5, rtol=1e-5)
        assert len(cache) == 1 + step and torch.equal(cache.image_index, image_index)
        text_ids = torch.cat([text_ids, ids(3, 9)[:, step : step + 1]], dim=1)


def test_decoding_several_tokens_at_once(model: VLMo) -> None:
    tokens, image = ids(2, 6), model.embed_image(images())
    state, cache = model.decode_step(
        model.prefill(image, max_length=12), model.embed_text(tokens, torch.ones_like(tokens))
    )
    assert_close(state, uncached(model, images(), tokens), atol=1e-5, rtol=1e-5)
    assert len(cache) == 5
    longer = torch.cat([tokens, ids(2, 3)], dim=1)
    state, _ = model.decode_step(cache, model.embed_text(longer, torch.ones_like(longer)))
    assert_close(state, uncached(model, images(), longer), atol=1e-5, rtol=1e-5)


def test_a_text_longer_than_the_positions_is_refused() -> None:
    model = VARIANTS["relative"].build()
    with pytest.raises(ValueError, match="a text of 13 tokens is longer than the 12"):
        model.prefill(model.embed_image(images()), max_length=13)


def test_bridgetower_refuses_generation() -> None:
    model = BRIDGETOWER.build()
    tokens = ids(2, 4)
    image, text = model.embed_image(images()), model.embed_text(tokens, torch.ones_like(tokens))
    for call in (
        lambda: model.fuse(image, text, attention_mask=seq2seq_attention_mask(4, PATCHES)),
        lambda: model.prefill(image, 4),
        lambda: model.decode_step(KVCache((), torch.arange(2)), text),
    ):
        with pytest.raises(ValueError, match=r"BridgeTower cannot generate captions: .* Use a VLMo"):
            call()
