"""BridgeTower against the installed transformers, on random weights and images, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    BridgeTowerForContrastiveLearning,
    BridgeTowerForImageAndTextRetrieval,
    BridgeTowerForMaskedLM,
    BridgeTowerModel,
    PreTrainedModel,
)

from dualfuse.convert.formats.bridgetower_hf import PREFIX, layout
from dualfuse.convert.formats.bridgetower_hf_config import read_config
from dualfuse.convert.rename import import_tensors
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.losses.itm import itm_loss
from dualfuse.models.base import Tokens
from dualfuse.tasks.pretrain.pair_batch import mlm_positions
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

LINKS = ("add", "scaled_add", "interpolate")
SIZES = ((32, 32), (16, 40))
PAD, LENGTHS, TEXT_LENGTH = 1, (9, 4, 2, 7), 9
ITC_WIDTH = 12


def config(link: str, *, shared: bool = True) -> transformers.BridgeTowerConfig:
    """Towers of four layers with two cross-modal ones above; images of 4 x 4 patches."""
    return transformers.BridgeTowerConfig(
        hidden_size=64,
        num_hidden_layers=2,
        link_tower_type=link,
        share_cross_modal_transformer_layers=shared,
        contrastive_hidden_size=ITC_WIDTH,
        logit_scale_init_value=2.6592,
        text_config={
            "vocab_size": 60,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "max_position_embeddings": 20,
        },
        vision_config={"hidden_size": 64, "num_hidden_layers": 4, "patch_size": 8, "image_size": 32},
    )


@cache
def theirs(kind: type[PreTrainedModel], link: str, *, shared: bool = True) -> PreTrainedModel:
    """Return a model of transformers with every parameter random."""
    torch.manual_seed(3)
    model = kind(config(link, shared=shared)).double().eval()
    for name, parameter in model.named_parameters():
        is_factor = parameter.ndim < 2 and name.endswith(("weight", "scale"))
        nn.init.normal_(parameter, mean=float(is_factor), std=0.2)
    return model


@cache
def ours(model: PreTrainedModel, **weights: float) -> Pairs:
    """Return a task with the weights of a model of transformers; heads that it lacks keep their initial weights."""
    cfg = read_config(model.config.to_dict(), {}).model
    prefix = "" if isinstance(model, BridgeTowerModel) else PREFIX
    imported = import_tensors(model.state_dict(), layout(cfg.bridge, prefix))
    assert not imported.unexpected
    projection = ITCHeadConfig(ITC_WIDTH, bias=True, fused=bool(weights.get("itc_weight")))
    cfg_of_task = PairsConfig(
        itc_features="unimodal", itc_head=projection, **({"itc_weight": 0, "itm_weight": 0, "mlm_weight": 0} | weights)
    )
    task = cfg_of_task.build(cfg.build()).double().eval()
    incompatible = task.load_state_dict(imported.tensors, strict=False)
    assert not incompatible.unexpected_keys
    assert not any(name.startswith("model.") for name in incompatible.missing_keys)
    return task


def same(one: Tensor, other: Tensor, inputs: dict[str, Any]) -> None:
    """Compare up to rounding; positions of images that are not square are resized in float32."""
    tolerance = 1e-10 if inputs["pixel_values"].shape[2:] == SIZES[0] else 2e-6
    assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.fixture(params=SIZES, ids=str)
def inputs(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The inputs of transformers: square images or others, texts of several lengths."""
    generator = torch.Generator().manual_seed(4)
    mask = torch.arange(TEXT_LENGTH) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(3, 60, (len(LENGTHS), TEXT_LENGTH), generator=generator)
    return {
        "input_ids": ids.masked_fill(~mask, PAD),
        "attention_mask": mask.long(),
        "pixel_values": torch.randn(len(LENGTHS), 3, *request.param, dtype=torch.float64, generator=generator),
        "interpolate_pos_encoding": True,
    }


def tokens(task: Pairs, inputs: dict[str, Any]) -> tuple[Tokens, Tokens]:
    image = task.model.embed_image(inputs["pixel_values"])
    return image, task.model.embed_text(inputs["input_ids"], inputs["attention_mask"].bool())


def batch(inputs: dict[str, Any], labels: Tensor) -> dict[str, Tensor]:
    positions, targets = mlm_positions(list(labels.numpy()))
    numbers = torch.arange(len(labels))
    return {
        "image": inputs["pixel_values"],
        "ids": inputs["input_ids"],
        "mask": inputs["attention_mask"].bool(),
        "masked_ids": inputs["input_ids"],
        "positions": positions,
        "targets": targets,
        "image_id": numbers,
        "text_id": numbers,
    }


@pytest.mark.parametrize("shared", [True, False], ids=["one transform", "one for each layer"])
@pytest.mark.parametrize("link", LINKS)
@torch.no_grad()
def test_states_equal_those_of_transformers(link: str, shared: bool, inputs: dict[str, Any]) -> None:
    model = theirs(BridgeTowerModel, link, shared=shared)
    task, expected = ours(model), model(**inputs)
    fused = task.model.fuse(*tokens(task, inputs))
    same(fused.text, expected.text_features, inputs)
    same(fused.image, expected.image_features, inputs)
    same(fused.pooled, expected.pooler_output, inputs)


@pytest.mark.parametrize("link", LINKS)
@torch.no_grad()
def test_mlm_equals_that_of_transformers(link: str, inputs: dict[str, Any]) -> None:
    model = theirs(BridgeTowerForMaskedLM, link)
    task = ours(model, mlm_weight=1.0)
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, column in ((0, 1), (0, 8), (1, 3), (3, 2)):
        labels[row, column] = 7 * row + column
    expected = model(**inputs, labels=labels)
    same(task.mlm_head(task.model.fuse(*tokens(task, inputs)).text), expected.logits, inputs)
    assert_close(task(batch(inputs, labels)).loss.double(), expected.loss, atol=1e-6, rtol=1e-6)  # a loss is float32


@pytest.mark.parametrize("link", LINKS)
@torch.no_grad()
def test_itm_equals_that_of_transformers(link: str, inputs: dict[str, Any]) -> None:
    model = theirs(BridgeTowerForImageAndTextRetrieval, link)
    task = ours(model, itm_weight=1.0)
    labels = torch.tensor([1, 1, 0, 0])  # positives first, as in ours
    expected = model(**inputs, labels=labels)
    pooled = task.model.fuse(*tokens(task, inputs)).pooled
    same(task.itm_head(pooled), expected.logits, inputs)
    log_odds = (expected.logits[:, 1] - expected.logits[:, 0]).float()
    assert_close(task.match_logit(*tokens(task, inputs)), log_odds, atol=1e-5, rtol=1e-5)
    loss = itm_loss(task.itm_head(pooled), torch.ones(2, dtype=torch.bool))
    assert_close(loss.double(), expected.loss, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("link", LINKS)
@torch.no_grad()
def test_itc_equals_that_of_transformers(link: str, inputs: dict[str, Any]) -> None:
    model = theirs(BridgeTowerForContrastiveLearning, link)
    task = ours(model, itc_weight=1.0)
    expected = model(**inputs, return_loss=True)
    [similarities] = task.similarities(*tokens(task, inputs))
    same(similarities.image, expected.image_embeds, inputs)
    same(similarities.text, expected.text_embeds, inputs)
    image, text = tokens(task, inputs)
    same(task.image_features(image), expected.image_embeds, inputs)
    same(task.text_features(text), expected.text_embeds, inputs)
    labels = torch.full_like(inputs["input_ids"], -100)
    assert_close(task(batch(inputs, labels)).loss.double(), expected.loss, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("change", [lambda x: x.flip(0), lambda x: x.flip(-1)], ids=["order", "mirror"])
@torch.no_grad()
def test_inputs_matter(change: Callable[[Tensor], Tensor], inputs: dict[str, Any]) -> None:
    """Check that the outputs compared above depend on the images."""
    task = ours(theirs(BridgeTowerModel, "add"))
    before = task.model.fuse(*tokens(task, inputs)).pooled
    after = task.model.fuse(*tokens(task, inputs | {"pixel_values": change(inputs["pixel_values"])})).pooled
    assert (before - after).abs().amax(1).min() > 1e-4
