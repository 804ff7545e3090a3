"""BridgeTower and METER against the official code: see tests/golden/bridgetower_official/manifest.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from official_bridgetower import OFFICIAL
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from dualfuse.convert.formats.bridgetower_official import KINDS, PAIRS, Kind, model_of, rank_to_itm
from dualfuse.convert.rename import import_tensors, rename
from dualfuse.layers.embeddings import resize_positions
from dualfuse.layers.heads import ClassificationHead, ITCHeadConfig
from dualfuse.losses.hard_negatives import sample_negatives
from dualfuse.losses.itc import find_positives, itc_loss
from dualfuse.losses.itm import itm_loss
from dualfuse.losses.mlm import mlm_loss
from dualfuse.models.bridgetower import BridgeTower, BridgeTowerConfig
from dualfuse.tasks.pretrain.pair_batch import mlm_positions
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "bridgetower_official"
RECORDED = json.loads((GOLDEN / "manifest.json").read_text())["outputs"]
NORMS = json.loads((GOLDEN / "grad_norms_mlm_plus_itm.json").read_text())
OUTPUTS, INPUTS = (load_file(GOLDEN / f"{name}.safetensors") for name in ("outputs", "inputs"))
STATE = load_file(GOLDEN / "state_dict.safetensors")
TOLERANCE = 2.5e-6
ROUNDING = 1e-6  # smaller norms of gradients are not compared
TASK = PairsConfig(
    mlm_weight=1.0,
    itc_features="unimodal",
    itc_head=ITCHeadConfig(width=24, bias=True, temperature="plain"),
    negatives="local",
)
MASK = INPUTS["attention_mask"].bool()


@pytest.fixture(autouse=True)
def largest_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded run took the largest weight instead of drawing."""
    monkeypatch.setattr(
        "dualfuse.losses.hard_negatives.sample_negatives",
        lambda logits, allowed, _: sample_negatives(logits, allowed, torch.zeros_like(logits)),
    )


def same(name: str, value: Tensor) -> None:
    """Compare more closely than recorded: 5e-5 would hide an epsilon of 1e-5, which shifts the logits by that much."""
    tolerance = min(RECORDED[name]["tolerance"] / 4, TOLERANCE)
    assert_close(value.detach(), OUTPUTS[name], atol=tolerance, rtol=0)


def kind(name: str) -> Kind:
    return next(kind for kind in KINDS if kind.name == name)


def weights(of: Kind = PAIRS) -> dict[str, Tensor]:
    return import_tensors(STATE, of.layout).tensors


def model(cfg: BridgeTowerConfig = OFFICIAL) -> BridgeTower:
    """Return a model with those of the recorded weights that it has."""
    made, given = cfg.build().eval(), weights()
    made.load_state_dict({name: given[f"model.{name}"] for name in made.state_dict()})
    return made


def task(cfg: PairsConfig = TASK) -> Pairs:
    made, given = cfg.build(OFFICIAL.build()).eval(), weights()
    made.load_state_dict({name: given[name] for name in made.state_dict()})
    return made


def classification_logits(of: str, pooled: Tensor) -> Tensor:
    """Return the logits of a fine-tuning head."""
    tensors = weights(kind(of))
    given = {name.removeprefix("classifier."): tensor for name, tensor in tensors.items() if "classifier" in name}
    head = ClassificationHead(
        pooled.shape[1], len(given["0.bias"]), len(given["3.bias"])
    )  # twice 2 D inside; NLVR2 1.5 times
    head.load_state_dict(given)
    return head(pooled)


def pooled(of: BridgeTower, *, positions: Tensor | None = None, images: Tensor = INPUTS["pixel_values"]) -> Tensor:
    return of.fuse(of.embed_image(images), of.embed_text(INPUTS["input_ids"], MASK), positions).pooled


def batch(image_id: Tensor) -> dict[str, Tensor]:
    positions, targets = mlm_positions(list(INPUTS["mlm_labels"].numpy()))
    return {
        "image": INPUTS["pixel_values"],
        "ids": INPUTS["input_ids"],
        "mask": MASK,
        "masked_ids": INPUTS["mlm_input_ids"],
        "positions": positions,
        "targets": targets,
        "image_id": image_id,
        "text_id": torch.arange(3),
    }


def test_the_config_follows_from_the_shapes() -> None:
    without_gates = {name: tensor for name, tensor in weights().items() if "gates" not in name}
    assert model_of(without_gates, heads=4) == OFFICIAL


@torch.no_grad()
def test_states() -> None:
    made = model()
    fused = made.fuse(made.embed_image(INPUTS["pixel_values"]), made.embed_text(INPUTS["input_ids"], MASK))
    same("infer.text_feats", fused.text)
    same("infer.image_feats", fused.image)
    same("infer.cls_feats", fused.pooled)
    same("infer.cls_feats", pooled(made, positions=torch.zeros(3, 0, dtype=torch.long)))


@torch.no_grad()
def test_mlm() -> None:
    made = task()
    masked = made.model.embed_text(INPUTS["mlm_input_ids"], MASK)
    states = made.model.fuse(made.model.embed_image(INPUTS["pixel_values"]), masked).text
    same("mlm.logits", made.mlm_head(states))
    same("mlm.loss", task(replace(TASK, itc_weight=0.0, itm_weight=0.0))(batch(torch.arange(3))).loss)


def itm_images() -> Tensor:
    """Return the images of ITM with the random negatives of the recorded draw."""
    is_own = OUTPUTS["itm.labels"].bool()[:, None, None, None]
    return torch.where(is_own, INPUTS["pixel_values"], INPUTS["false_pixel_values"])


def itm_loss_of(made: Pairs) -> Tensor:
    order = OUTPUTS["itm.labels"].argsort(descending=True, stable=True)  # positives first
    is_negative = OUTPUTS["itm.labels"][order] == 0
    logits = made.itm_head(pooled(made.model, images=itm_images())[order])
    return itm_loss(logits, is_negative[is_negative])


@torch.no_grad()
def test_itm_with_random_negatives() -> None:
    made = task()
    same("itm.logits", made.itm_head(pooled(made.model, images=itm_images())))
    same("itm.loss", itm_loss_of(made))


@torch.no_grad()
def test_itc() -> None:
    made = task()
    image = made.model.embed_image(INPUTS["pixel_values"])
    text = made.model.embed_text(INPUTS["input_ids"], MASK)
    same("itc.image_feats", made.image_features(image))
    same("itc.text_feats", made.text_features(text))
    same("itc.loss", task(replace(TASK, itm_weight=0.0, mlm_weight=0.0))(batch(torch.arange(3))).loss)


@torch.no_grad()
@pytest.mark.parametrize(
    ("form", "image_id"), [("itm_itc", torch.arange(3)), ("irtr_itm_itc", INPUTS["img_index"])], ids=str
)
def test_itc_and_hard_negatives(form: str, image_id: Tensor) -> None:
    """In pre-training, and in retrieval, where all texts of an image are positives."""
    made, pairs = task(), batch(image_id)
    image, text = made.model.embed_image(pairs["image"]), made.model.embed_text(pairs["ids"], MASK)
    positives = find_positives(pairs["image_id"], pairs["text_id"])
    [similar] = made.similarities(image, text)
    same(f"{form}.itc_loss", itc_loss(similar, positives))
    pairs_of_itm, targets = made.itm_batch(pairs, image, text, similar, positives)
    negative_image, negative_text = OUTPUTS[f"{form}.negative_image_of_text"], OUTPUTS[f"{form}.negative_text_of_image"]
    _, (_, images), (texts, _) = pairs_of_itm
    assert torch.equal(images.states[0], image.take(negative_image).states[0])
    assert torch.equal(texts.states[0], text.take(negative_text).states[0])
    fused, _ = made.fuse(pairs_of_itm, pairs["positions"][:0])
    same(f"{form}.itm_logits", made.itm_head(fused))
    assert targets.has_negative.all()
    assert OUTPUTS[f"{form}.itm_labels"].tolist() == [1] * len(pairs_of_itm[0][0]) + [0] * len(targets.has_negative)

    output = made(pairs)
    same(f"{form}.itc_loss", output.log["loss/itc"])
    same(f"{form}.itm_loss", output.log["loss/itm"])
    same("mlm.loss", output.log["loss/mlm"])
    assert_close(output.loss, output.log["loss/itc"] + output.log["loss/itm"] + output.log["loss/mlm"])


@torch.no_grad()
def test_meter() -> None:
    cfg = replace(OFFICIAL, bridge="none")
    made = model(cfg)
    fused = made.fuse(made.embed_image(INPUTS["pixel_values"]), made.embed_text(INPUTS["input_ids"], MASK))
    same("meter.text_feats", fused.text)
    same("meter.image_feats", fused.image)
    same("meter.cls_feats", fused.pooled)
    same("meter_fusion.cls_feats", pooled(model(replace(cfg, all_layers=True))))
    same("meter_remove_last.cls_feats", pooled(model(replace(cfg, image=replace(cfg.image, depth=3)))))


@pytest.mark.parametrize("side", [24, 48])
def test_positions_of_other_sizes(side: int) -> None:
    positions = weights()["model.image_tower.positions"]
    resized = resize_positions(positions[None], (4, 4), (side // 8, side // 8))
    same(f"resize_position.{side}", resized[0])


@torch.no_grad()
def test_vqa_and_entailment() -> None:
    fused = pooled(model())
    answers, entailment = classification_logits("vqa", fused), classification_logits("entailment", fused)
    same("vqa.logits", answers)
    same("vqa.loss", F.binary_cross_entropy_with_logits(answers, INPUTS["vqa_targets"]) * answers.shape[1])
    same("snli.logits", entailment)
    same("snli.loss", F.cross_entropy(entailment, INPUTS["snli_labels"]))


@torch.no_grad()
def test_nlvr2() -> None:
    """Both images are fused with the text on their own; the second has its own type embedding."""
    made, given = replace(OFFICIAL, image_slots=2).build().eval(), weights()
    given["model.types.weight"] = STATE["nlvr2_token_type_embeddings"]
    made.load_state_dict({name: given[f"model.{name}"] for name in made.state_dict()})
    text = made.embed_text(INPUTS["input_ids"], MASK)
    pil_images = (INPUTS["pixel_values"], INPUTS["second_pixel_values"])
    both = [made.fuse(made.embed_image(images, slot), text).pooled for slot, images in enumerate(pil_images)]
    logits = classification_logits("nlvr2", torch.cat(both, dim=1))
    same("nlvr2.logits", logits)
    same("nlvr2.loss", F.cross_entropy(logits, INPUTS["nlvr2_labels"]))


@torch.no_grad()
def test_ranking() -> None:
    """The ranking score of a text equals the ITM log-odds of the head that it is converted to."""
    made = replace(TASK, itc_weight=0.0, mlm_weight=0.0).build(OFFICIAL.build()).eval()
    given = rank_to_itm(weights(kind("ranking")))
    missing = made.load_state_dict({name: given[name] for name in made.state_dict() if name in given}, strict=False)
    assert all(name.startswith(("itc_heads.", "mlm_head.")) for name in missing.missing_keys)
    ids = torch.cat([INPUTS["input_ids"][:, None], INPUTS["false_text_ids"]], dim=1)
    masks = torch.cat([INPUTS["attention_mask"][:, None], INPUTS["false_text_masks"]], dim=1)
    image = made.model.embed_image(INPUTS["pixel_values"]).take(torch.arange(3).repeat_interleave(4))
    scores = made.match_logit(image, made.model.embed_text(ids.flatten(0, 1), masks.flatten(0, 1))).view(3, 4)
    same("irtr.scores", scores)
    same("irtr.loss", F.cross_entropy(scores, torch.zeros(3, dtype=torch.long)))


def test_gradients() -> None:
    """Norms of the gradients of MLM plus ITM are equal, and the same parameters have none."""
    made, pairs = task(), batch(torch.arange(3))
    image, masked = made.model.embed_image(pairs["image"]), made.model.embed_text(pairs["masked_ids"], MASK)
    states = made.model.fuse(image, masked, pairs["positions"]).text
    (mlm_loss(made.mlm_head, states, pairs["targets"])[0] + itm_loss_of(made)).backward()
    norms = rename(NORMS, PAIRS.layout.names)
    assert all(NORMS[name] is None for name in norms.unknown), norms.unknown
    gradients = {name: parameter.grad for name, parameter in made.named_parameters()}
    trained = {name for name, gradient in gradients.items() if gradient is not None}
    assert trained <= norms.tensors.keys()
    for name, norm in norms.tensors.items():
        gradient = gradients.get(name)
        if norm is None:
            assert gradient is None or not gradient.any(), name
        else:
            assert gradient is not None, name
            assert float(gradient.norm()) == pytest.approx(norm, rel=2.5e-4, abs=ROUNDING), name
