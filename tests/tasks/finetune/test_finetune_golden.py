"""Fine-tuning tasks against tensors recorded from both official codes; see the manifests in tests/golden."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from official_bridgetower import OFFICIAL
from official_vlmo import from_official
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from dualfuse.convert.formats.bridgetower_official import KINDS
from dualfuse.convert.rename import import_tensors
from dualfuse.data.loader import Batch
from dualfuse.models.base import ModelConfig
from dualfuse.models.vlmo import InitConfig, VLMoConfig
from dualfuse.tasks.finetune.classification import Classification
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.questions import QuestionConfig
from dualfuse.tasks.finetune.vqa import VQAConfig

GOLDEN = Path(__file__).parents[2] / "golden"
VLMO_FACTS = json.loads((GOLDEN / "vlmo" / "facts.json").read_text())
VLMO = VLMoConfig(
    width=48,
    depth=4,
    heads=4,
    vl_expert_start=2,
    patch_size=8,
    image_size=(32, 32),
    vocab_size=101,
    text_length=20,
    drop_path=0.0,
)
VLMO_MODELS = {
    "rel": VLMO,
    "abs": replace(VLMO, positions="absolute", init=InitConfig(layer_scale=0.0), text_length=12),
}


def loaded(cfg: QuestionConfig, model: ModelConfig, weights: dict[str, Tensor]) -> Classification:
    """Return the task with recorded weights, without those of other heads."""
    task = cfg.build(model.build()).eval()
    task.load_state_dict({name: weights[name] for name in task.state_dict()})
    return task


def batch(inputs: dict[str, Tensor], images: tuple[str, ...], text: tuple[str, str], target: Tensor) -> Batch:
    ids, mask = text
    pil_images = torch.stack([inputs[name] for name in images], dim=1)
    return {"images": pil_images, "ids": inputs[ids], "mask": inputs[mask].bool(), "target": target}


def vlmo(variant: str, head: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return inputs, outputs, and weights with one head as the classifier."""
    inputs, outputs, state = (load_file(GOLDEN / "vlmo" / f"{variant}_{part}.safetensors") for part in PARTS)
    weights = from_official(state).tensors
    of_head = {name.replace(f"{head}_", ""): tensor for name, tensor in state.items() if name.startswith(f"{head}_")}
    return inputs, outputs, weights | of_head


PARTS = ("inputs", "outputs", "state")
VLMO_TEXT = ("in.text_ids", "in.text_masks")


def check_vlmo(variant: str, name: str, value: Tensor, outputs: dict[str, Tensor]) -> None:
    atol, rtol = VLMO_FACTS["tolerances"][f"{variant}_outputs"][name]
    assert_close(value, outputs[name], atol=atol, rtol=rtol)


@torch.no_grad()
@pytest.mark.parametrize("variant", VLMO_MODELS)
def test_vlmo_vqa(variant: str) -> None:
    inputs, outputs, weights = vlmo(variant, "vqa")
    task = loaded(VQAConfig(num_answers=17), VLMO_MODELS[variant], weights)
    questions = batch(inputs, ("in.image",), VLMO_TEXT, outputs["vqa.targets"])
    check_vlmo(variant, "vqa.logits", task.logits(questions), outputs)
    check_vlmo(variant, "vqa.loss", task(questions).loss, outputs)


@torch.no_grad()
@pytest.mark.parametrize("variant", VLMO_MODELS)
def test_vlmo_nlvr2(variant: str) -> None:
    inputs, outputs, weights = vlmo(variant, "nlvr2")
    state = load_file(GOLDEN / "vlmo" / f"{variant}_state.safetensors")
    weights["model.types.weight"] = state["nlvr2.token_type_embeddings.weight"]
    task = loaded(NLVR2Config(), replace(VLMO_MODELS[variant], image_slots=2), weights)
    questions = batch(inputs, ("in.image", "in.image_1"), VLMO_TEXT, inputs["in.nlvr2_answers"])
    check_vlmo(variant, "nlvr2.logits", task.logits(questions), outputs)
    check_vlmo(variant, "nlvr2.loss", task(questions).loss, outputs)


BRIDGETOWER_TASKS: dict[str, tuple[QuestionConfig, str, str, tuple[str, ...]]] = {
    "vqa": (VQAConfig(num_answers=13), "vqa", "vqa_targets", ("pixel_values",)),
    "entailment": (EntailmentConfig(), "snli", "snli_labels", ("pixel_values",)),
    "nlvr2": (
        NLVR2Config(hidden_scale=1.5, dropout=0.1),
        "nlvr2",
        "nlvr2_labels",
        ("pixel_values", "second_pixel_values"),
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", BRIDGETOWER_TASKS)
def test_bridgetower(name: str) -> None:
    cfg, recorded, target, images = BRIDGETOWER_TASKS[name]
    folder = GOLDEN / "bridgetower_official"
    inputs, outputs, state = (load_file(folder / f"{part}.safetensors") for part in (*PARTS[:2], "state_dict"))
    tolerances = json.loads((folder / "manifest.json").read_text())["outputs"]
    weights = import_tensors(state, next(kind for kind in KINDS if kind.name == name).layout).tensors
    if len(images) == 2:
        weights["model.types.weight"] = state["nlvr2_token_type_embeddings"]
    task = loaded(cfg, replace(OFFICIAL, image_slots=len(images)), weights)
    questions = batch(inputs, images, ("input_ids", "attention_mask"), inputs[target])
    for what, value in (("logits", task.logits(questions)), ("loss", task(questions).loss)):
        assert_close(
            value,
            outputs[f"{recorded}.{what}"],
            atol=tolerances[f"{recorded}.{what}"]["tolerance"],
            rtol=0,
            check_stride=False,
        )
