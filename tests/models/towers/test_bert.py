"""BERT as a text tower against transformers, and its pooled state."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig as TheirConfig
from transformers import BertModel

from dualfuse.convert.formats.bert_tower import import_bert_tower, tower_config
from dualfuse.errors import DualfuseError
from dualfuse.models.towers.bert import Bert, BertConfig

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 50,
    "max_position_embeddings": 12,
}
IDS = torch.randint(1, 50, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]


def theirs() -> BertModel:
    torch.manual_seed(0)
    return BertModel(TheirConfig(**SIZES)).double().eval()


def ours(model: BertModel, **options: str) -> Bert:
    imported = import_bert_tower(model.state_dict())
    assert not imported.unexpected and set(imported.unused) == {"pooler.dense.weight", "pooler.dense.bias"}
    sizes = tower_config(model.config.to_dict(), "config.json")
    cfg = BertConfig(**{**vars(sizes), **options})
    tower = cfg.build(dropout=0.0).double().eval()
    tower.load_state_dict({name.removeprefix("model.text_tower."): x for name, x in imported.tensors.items()})
    return tower


@torch.no_grad()
def test_states_are_those_of_transformers() -> None:
    model = theirs()
    output = ours(model)(IDS, MASK, layers=(0, 2))
    states = model(IDS, attention_mask=MASK.long(), output_hidden_states=True).hidden_states
    for state, expected in zip(output.states, (states[1], states[3]), strict=True):
        assert_close(state[MASK], expected[MASK], atol=1e-10, rtol=0)


@torch.no_grad()
def test_the_pooled_state_is_the_mean_over_tokens_or_the_first() -> None:
    model = theirs()
    output = ours(model)(IDS, MASK, layers=(2,))
    expected = torch.stack([state[:length].mean(0) for state, length in zip(output.states[0], (9, 4, 1), strict=True)])
    assert output.pooled is not None
    assert_close(output.pooled, expected)
    assert ours(model, pooling="first")(IDS, MASK, layers=(2,)).pooled is None


def test_texts_longer_than_the_positions_are_refused() -> None:
    tower = BertConfig(width=8, depth=1, heads=2, feed_forward=8, vocab_size=9, text_length=4).build(dropout=0.0)
    with pytest.raises(DualfuseError, match="5 tokens is longer than the 4"):
        tower(torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 5, dtype=torch.bool), layers=(0,))


def test_other_models_are_refused() -> None:
    config = theirs().config.to_dict()
    with pytest.raises(DualfuseError, match="hidden_act 'relu'"):
        tower_config(config | {"hidden_act": "relu"}, "config.json")
    with pytest.raises(DualfuseError, match="vocab_size"):
        tower_config({key: value for key, value in config.items() if key != "vocab_size"}, "config.json")
    with pytest.raises(DualfuseError, match="multiple of the heads"):
        BertConfig(width=10, heads=3)
