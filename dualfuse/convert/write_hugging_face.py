"""What a folder of Hugging Face's transformers holds for one of our models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dualfuse.convert.build import Converted
from dualfuse.convert.hugging_face import PREFIX, to_hugging_face
from dualfuse.convert.hugging_face_config import EPSILON
from dualfuse.convert.report import Report, shapes
from dualfuse.convert.write_hugging_face_config import write_config, write_processor
from dualfuse.errors import DualfuseError
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

TOKENIZER = {
    "tokenizer_class": "RobertaTokenizer",
    "processor_class": "BridgeTowerProcessor",
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
    "add_prefix_space": False,
}


@dataclass(frozen=True)
class Written:
    """The tensors, the JSON files, and what became of ours."""

    tensors: dict[str, Tensor]
    files: dict[str, dict[str, Any]]  # Any: whatever JSON holds
    report: Report


def write_hugging_face(converted: Converted) -> Written:
    """Return the content of the folder; ``DualfuseError`` says what of the model transformers does not have."""
    model, task, data = converted.recipe.model, converted.recipe.task, converted.recipe.data
    if not isinstance(model, BridgeTowerConfig) or not isinstance(task, PairsConfig):
        raise DualfuseError(
            f"transformers has no {type(model).__name__} for {type(task).__name__}; what it has is BridgeTower, alone "
            "or for contrast, matching and masked words"
        )
    if model.bridge == "none":
        raise DualfuseError("transformers has no METER: a BridgeTower without bridges cannot be written for it")
    ours, notes = converted.task.state_dict(), []
    heads = _heads(model, task, notes)
    kept = converted.kept or _no_pooler(ours, notes)
    wanted = {name: tensor for name, tensor in ours.items() if name.startswith(("model.", *heads))}
    files = {
        "config.json": write_config(
            model,
            architecture=_architecture(heads),
            itc_width=task.itc_head.width or model.text.width,
            text_length=data.text_length,
        ),
        "preprocessor_config.json": write_processor(
            model.image.image_size[0], data.preprocess, text_length=data.text_length
        ),
        "tokenizer_config.json": TOKENIZER | {"model_max_length": model.text.text_length},
    }
    tensors = to_hugging_face(wanted, kept, bridge=model.bridge, prefix=PREFIX if heads else "")
    if data.preprocess.resize_mode != "huggingface":
        notes.append(
            f"images were fitted by {data.preprocess.resize_mode!r}; the processor of transformers has its own way"
        )
    if model.layer_norm_eps != EPSILON:
        notes.append(
            f"epsilon of the cross-modal layers was {model.layer_norm_eps}; in transformers it is {EPSILON}: logits move by "
            "some 1e-5"
        )
    report = Report(
        converted.report.source,
        used=shapes(wanted),
        unused=shapes({name: tensor for name, tensor in ours.items() if name not in wanted}),
        new=shapes({} if converted.kept else {name: tensor for name, tensor in tensors.items() if _is_pooler(name)}),
        notes=tuple(notes),
    )
    return Written(tensors, files, report)


def _heads(model: BridgeTowerConfig, task: PairsConfig, notes: list[str]) -> tuple[str, ...]:
    """Return the prefixes of the heads that were trained and that transformers has."""
    heads = [prefix for prefix, weight in (("itm_head.", task.itm_weight), ("mlm_head.", task.mlm_weight)) if weight]
    if task.itc_weight:
        projection = task.itc_head
        reasons = {
            "without a head for fused vectors": not projection.fused,
            "without biases": not projection.bias,
            "with a plain temperature": projection.temperature != "log",
            "on vectors of the image tower that are not transformed": model.itc_image_feature != "transformed",
            "with a transform for each layer": not model.shared_transform,
            "with towers of two widths": model.image.width != model.width,
        }
        if impossible := [reason for reason, holds in reasons.items() if holds]:
            notes.append(f"contrast is left out: transformers has none {', '.join(impossible)}")
        else:
            heads.append("itc_heads.")
    return tuple(heads)


def _architecture(heads: tuple[str, ...]) -> str:
    """Return the class for the richest of the heads; each class leaves the others' tensors aside, with a warning."""
    classes = {
        "itc_heads.": "BridgeTowerForContrastiveLearning",
        "itm_head.": "BridgeTowerForImageAndTextRetrieval",
        "mlm_head.": "BridgeTowerForMaskedLM",
    }
    return next((name for prefix, name in classes.items() if prefix in heads), "BridgeTowerModel")


def _no_pooler(ours: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Return zeros for the pooler of the text tower, which no class of transformers reads but all have."""
    width = ours["model.text_tower.words.word.weight"].shape[1]
    notes.append("the text pooler, which transformers has and never reads, is zero")
    return {"text_pooler.weight": torch.zeros(width, width), "text_pooler.bias": torch.zeros(width)}


def _is_pooler(name: str) -> bool:
    return "text_model.pooler." in name
