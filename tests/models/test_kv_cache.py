"""Words that see no later ones: with several texts of one image, taken in any order, of any length, cached or not."""

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
    "relative-alike": replace(TINY, share_relative_bias=True),
    "absolute": replace(TINY, positions="absolute", init=InitConfig(layer_scale=0.0)),
    "separate": replace(TINY, separate_attention_until=1),
    "separate-absolute": replace(TINY, separate_attention_until=2, positions="absolute"),
    "shared-expert": replace(TINY, experts="shared"),
    "no-both-expert": replace(TINY, vl_expert_start=3),
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


def whole(model: VLMo, images: Tensor, words: Tensor) -> Tensor:
    """The state of the last word, with everything computed anew."""
    text = model.embed_text(words, torch.ones_like(words))
    attention_mask = seq2seq_attention_mask(words.shape[1], PATCHES)
    return model.fuse(model.embed_image(images), text, attention_mask=attention_mask).text[:, -1]


def test_who_sees_whom() -> None:
    assert seq2seq_attention_mask(3, 2).int().tolist() == [
        [1, 0, 0, 1, 1],
        [1, 1, 0, 1, 1],
        [1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1],
    ]


def test_nothing_knows_later_words(model: VLMo) -> None:
    """And earlier ones and the image matter: a state that depends on nothing would pass, too."""
    words, image = ids(2, 8), model.embed_image(images())
    seen = torch.ones_like(words).bool()
    one = model.fuse(image, model.embed_text(words, seen), attention_mask=seq2seq_attention_mask(8, PATCHES))
    other = words.clone()
    other[:, 5] = (words[:, 5] - 5 + 1) % (MODEL.vocab_size - 5) + 5
    two = model.fuse(image, model.embed_text(other, seen), attention_mask=seq2seq_attention_mask(8, PATCHES))
    assert_close(one.text[:, :5], two.text[:, :5])
    assert_close(one.image, two.image)
    assert ((one.text[:, 5:] - two.text[:, 5:]).abs().amax(2) > 1e-5).all()
    turned = model.fuse(
        model.embed_image(images().flip(3)), model.embed_text(words, seen), attention_mask=seq2seq_attention_mask(8, 17)
    )
    assert ((one.text - turned.text).abs().amax(2) > 1e-5).all()


def test_padding_is_seen_by_no_word(model: VLMo) -> None:
    words, image = ids(2, 8), model.embed_image(images())
    text = model.embed_text(words, torch.arange(8) < torch.tensor([[3], [8]]))
    padded = model.fuse(image, text, attention_mask=seq2seq_attention_mask(8, PATCHES))
    alone = model.fuse(
        image.take(torch.tensor([0])),
        model.embed_text(words[:1, :3], torch.ones(1, 3)),
        attention_mask=seq2seq_attention_mask(3, PATCHES),
    )
    assert_close(padded.text[:1, :3], alone.text)
    assert_close(padded.image[:1], alone.image)


def test_what_is_remembered_is_what_would_be_computed(model: VLMo) -> None:
    """Three texts of two images are written as a beam does it: a mask is read, replaced, and texts change places."""
    given, mask = images(), 4
    past = model.prefill(model.embed_image(given), max_length=9).take(torch.tensor([0, 0, 1]))
    said, about = ids(3, 1), torch.tensor([0, 0, 1])
    for step, order in enumerate(([0, 1, 2], [1, 1, 2], [0, 2, 1], [2, 0, 1], [0, 1, 2])):
        past, said, about = past.take(torch.tensor(order)), said[order], about[order]
        asked = torch.cat([said, torch.full((3, 1), mask)], dim=1)
        state, past = model.decode_step(past, model.embed_text(asked, torch.ones_like(asked)))
        assert_close(state, whole(model, given[about], asked), atol=1e-5, rtol=1e-5)
        assert len(past) == 1 + step and torch.equal(past.image_index, about)
        said = torch.cat([said, ids(3, 9)[:, step : step + 1]], dim=1)


def test_several_words_at_once_are_one_after_the_other(model: VLMo) -> None:
    words, image = ids(2, 6), model.embed_image(images())
    state, past = model.decode_step(
        model.prefill(image, max_length=12), model.embed_text(words, torch.ones_like(words))
    )
    assert_close(state, whole(model, images(), words), atol=1e-5, rtol=1e-5)
    assert len(past) == 5
    longer = torch.cat([words, ids(2, 3)], dim=1)
    state, _ = model.decode_step(past, model.embed_text(longer, torch.ones_like(longer)))
    assert_close(state, whole(model, images(), longer), atol=1e-5, rtol=1e-5)


def test_a_text_longer_than_the_model_knows_is_refused() -> None:
    model = VARIANTS["relative"].build()
    with pytest.raises(ValueError, match="a text of 13 tokens is longer than the 12"):
        model.prefill(model.embed_image(images()), max_length=13)


def test_bridgetower_says_why_it_writes_nothing() -> None:
    model = BRIDGETOWER.build()
    words = ids(2, 4)
    image, text = model.embed_image(images()), model.embed_text(words, torch.ones_like(words))
    for ask in (
        lambda: model.fuse(image, text, attention_mask=seq2seq_attention_mask(4, PATCHES)),
        lambda: model.prefill(image, 4),
        lambda: model.decode_step(KVCache((), torch.arange(2)), text),
    ):
        with pytest.raises(ValueError, match=r"BridgeTower cannot generate captions: .* Use a VLMo"):
            ask()
