"""BridgeTower in Hugging Face's transformers: a folder with weights, config.json, processor and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dualfuse.convert.checkpoint import (
    BATCH_SIZE,
    RUN,
    Converted,
    Format,
    Source,
    ThirdPartyCheckpoint,
    WrittenCheckpoint,
    export_report,
)
from dualfuse.convert.formats import clip, roberta
from dualfuse.convert.formats.bridgetower import CROSS_MODAL, ITC, ITM, MLM, OPTIM, storable_towers
from dualfuse.convert.formats.bridgetower_hf_config import (
    LAYER_NORM_EPS,
    Json,
    read_config,
    write_config,
    write_processor,
)
from dualfuse.convert.rename import Layout, Table, add_prefixes, export_tensors, import_tensors, weight_and_bias
from dualfuse.convert.report import import_report
from dualfuse.convert.tokenizer import ROBERTA, find_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.files import read_json_object
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.pretrain.pairs import PairsConfig

PREFIX = "bridgetower."
"""Prefix of all but the heads, in files of models with heads; the bare BridgeTowerModel has none."""
_SCALES: Mapping[str, str] = {"scaled_add": "scaled_factor", "interpolate": "beta"}
"""Third-party names of the scalar of a bridge, by the type of bridge."""
_MODEL = (
    add_prefixes(clip.HUGGING_FACE_EMBEDDINGS | clip.OPENAI_BLOCKS, "vision_model.visual.", "model.image_tower.")
    | add_prefixes(roberta.TOWER, "text_model.", "model.text_tower.")
    | add_prefixes(CROSS_MODAL, "", "model.")
)
_HEADS = MLM | ITM | ITC | weight_and_bias({"itc_cross_modal_head.fc": "itc_heads.0.fused"})
_HEADS |= {"logit_scale": "itc_heads.0.logit_scale"}
_TOKENIZER = {
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


def layout(bridge: str, prefix: str = PREFIX) -> Layout:
    """Return the names in a file of a model with heads, or with an empty ``prefix`` of the bare model."""
    scales: Table = {
        f"cross_modal_{modality}_link_tower.{{}}.{_SCALES[bridge]}": f"model.bridges.{modality}.{{}}.scale"
        for modality in ("text", "image")
        if bridge in _SCALES
    }
    return Layout(
        names=add_prefixes(_MODEL | scales, prefix, "") | _HEADS,
        kept=add_prefixes(roberta.POOLER, prefix + "text_model.", ""),
        unused=(
            f"{prefix}text_model.embeddings.position_ids",
            f"{prefix}vision_model.visual.embeddings.position_ids",
        ),
        scalars=("logit_scale", *(f".{name}" for name in _SCALES.values())),
    )


def _recognize(source: Source) -> bool:
    return source.config.get("model_type") == "bridgetower"


def _read(source: Source, tokenizer: str) -> ThirdPartyCheckpoint:
    processor = source.path / "preprocessor_config.json"
    config = read_config(source.config, read_json_object(processor) if processor.is_file() else {})
    prefix = PREFIX if any(name.startswith(PREFIX) for name in source.tensors) else ""
    imported = import_tensors(source.tensors, layout(config.model.bridge, prefix))
    tensors, notes = imported.tensors, list(config.notes)
    if config.tie_word_embeddings and any(name.startswith("mlm_head.") for name in tensors):
        tensors["mlm_head.decoder.weight"] = tensors["model.text_tower.words.word.weight"]
        notes.append("tie_word_embeddings: the decoder of the MLM head becomes a copy of the word embedding")
    data = Data(
        image_size=config.model.image.image_size,
        preprocess=config.preprocess,
        text_length=config.text_length,
        tokenizer=find_tokenizer(tokenizer, source.path, ROBERTA),
        batch_size=BATCH_SIZE,
    )
    has_itc = "itc_heads.0.image.weight" in tensors
    task = PairsConfig(
        itc_weight=float(has_itc),
        itm_weight=float("itm_head.weight" in tensors),
        mlm_weight=float("mlm_head.dense.weight" in tensors),
        itc_features="unimodal",
        itc_head=ITCHeadConfig(config.itc_width, bias=True, fused=has_itc),
        negative_hardness=0.0,
        negatives_per_pair=1 if has_itc else 0,
        masking="token",
    )
    recipe = Recipe(source.path.name, config.model, task, data, OPTIM, RUN)
    return ThirdPartyCheckpoint(recipe, tensors, imported.kept, import_report(str(source.path), imported, notes))


def _stores(recipe: Recipe) -> bool:
    return isinstance(recipe.model, BridgeTowerConfig) and isinstance(recipe.task, PairsConfig)


def _write(converted: Converted) -> WrittenCheckpoint:
    """Write what transformers has of a model: untrained heads, and an ITC head of another kind, are dropped."""
    model, task, data = converted.recipe.model, converted.recipe.task, converted.recipe.data
    assert isinstance(model, BridgeTowerConfig) and isinstance(task, PairsConfig)  # _stores
    if model.bridge == "none":
        raise DualfuseError("transformers has no METER: a BridgeTower without bridges cannot be written for it")
    tensors, notes = converted.task.state_dict(), []
    heads = _stored_heads(model, task, notes)
    json_files = _json_files(model, task, data, next(iter(heads.values()), "BridgeTowerModel"))
    absent = tuple(f"{head}.*" for head in ("itc_heads", "itm_head", "mlm_head") if head not in heads)
    target = replace(layout(model.bridge, PREFIX if heads else ""), dropped=absent)
    pooler = {} if converted.kept else _zero_pooler(tensors, notes)
    exported = export_tensors(tensors, target, converted.kept or pooler)
    if data.preprocess.resize_mode != "huggingface":
        notes.append(f"images were resized by {data.preprocess.resize_mode!r}; transformers' processor differs")
    if (epsilon := model.layer_norm_eps) != LAYER_NORM_EPS:
        notes.append(
            f"epsilon of the cross-modal layers was {epsilon}; in transformers it is {LAYER_NORM_EPS}: logits change "
            "by about 1e-5"
        )
    new = {name: tensor for name, tensor in exported.tensors.items() if pooler and "text_model.pooler." in name}
    report = export_report(converted, exported, new, notes)
    return WrittenCheckpoint("model.safetensors", exported.tensors, report, json_files=json_files)


def _json_files(model: BridgeTowerConfig, task: PairsConfig, data: Data, architecture: str) -> dict[str, Json]:
    image, text = storable_towers("transformers' BridgeTower", model)
    length, width = data.text_length, task.itc_head.width or text.width
    return {
        "config.json": write_config(model, architecture=architecture, itc_width=width, text_length=length),
        "preprocessor_config.json": write_processor(image.image_size[0], data.preprocess, text_length=length),
        "tokenizer_config.json": _TOKENIZER | {"model_max_length": text.text_length},
    }


def _stored_heads(model: BridgeTowerConfig, task: PairsConfig, notes: list[str]) -> dict[str, str]:
    """Return the trained heads that transformers has, with the class of each, which ignores the other heads."""
    heads = {}
    if task.itc_weight:
        head = task.itc_head
        obstacles = {
            "without a head for fused embeddings": not head.fused,
            "without biases": not head.bias,
            "with a plain temperature": head.temperature != "log",
            "on image features that are not transformed": model.itc_image_feature != "transformed",
            "with a transform for each layer": not model.shared_transform,
            "with towers of two widths": model.image.width != model.width,
        }
        if present := [obstacle for obstacle, is_present in obstacles.items() if is_present]:
            notes.append(f"the ITC head is dropped: transformers has none {', '.join(present)}")
        else:
            heads["itc_heads"] = "BridgeTowerForContrastiveLearning"
    if task.itm_weight:
        heads["itm_head"] = "BridgeTowerForImageAndTextRetrieval"
    if task.mlm_weight:
        heads["mlm_head"] = "BridgeTowerForMaskedLM"
    return heads


def _zero_pooler(tensors: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Return zeros for the pooler of the text tower, which all classes of transformers have and none reads."""
    width = tensors["model.text_tower.words.word.weight"].shape[1]
    notes.append("the text pooler, which transformers has and never reads, is zero")
    return {"text_pooler.weight": torch.zeros(width, width), "text_pooler.bias": torch.zeros(width)}


FORMAT = Format("Hugging Face BridgeTower", "huggingface", _recognize, _read, _stores, _write)
