"""Official BridgeTower and METER checkpoints: Lightning files whose heads tell the task."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dualfuse.convert import shapes as sizes
from dualfuse.convert.checkpoint import (
    BATCH_SIZE,
    RUN,
    Converted,
    Format,
    Source,
    ThirdPartyCheckpoint,
    WrittenCheckpoint,
    export_report,
    reject_any,
    untrained_heads,
)
from dualfuse.convert.formats import clip, roberta
from dualfuse.convert.formats.bridgetower import CROSS_MODAL, ITC, ITM, MLM, OPTIM, storable_towers
from dualfuse.convert.rename import Layout, Table, add_prefixes, export_tensors, import_tensors, weight_and_bias
from dualfuse.convert.report import import_report
from dualfuse.convert.tokenizer import ROBERTA, find_tokenizer
from dualfuse.data.image.transform import OFFICIAL_BLIP, OFFICIAL_CLIP
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import HEAD_WIDTH, CLIPViTConfig
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.ranking import RankingConfig
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

LAYER_NORM_EPS = 1e-12
"""Epsilon of the cross-modal layers, which the official code builds from RoBERTa's default config."""
ITC_WIDTH = 256
TEXT_LENGTH, RETRIEVAL_TEXT_LENGTH = 50, 40

MODEL = (
    add_prefixes(clip.OPENAI_TOWER, "vit_model.visual.", "model.image_tower.")
    | add_prefixes(roberta.TOWER, "text_transformer.", "model.text_tower.")
    | add_prefixes(CROSS_MODAL, "", "model.")
    | weight_and_bias({"text_gate": "model.gates.text.gate", "image_gate": "model.gates.image.gate"})
)
"""Everything but the heads. METER's files have the gates, and no bridges."""
_UNUSED = (
    "text_transformer.embeddings.position_ids",
    "vit_model.positional_embedding",
    "vit_model.ln_final.*",
    "vit_model.token_embedding.weight",
    "vit_model.visual.proj",
)
_EARLIER_HEADS = ("temperature", "itm_score.fc.*", "mlm_score.*", "itc_text_head.fc.*", "itc_image_head.fc.*")


def _classifier(name: str) -> Table:
    """Linear, LayerNorm, (GELU,) Linear."""
    return weight_and_bias({f"{name}.{index}": f"classifier.{index}" for index in (0, 1, 3)})


@dataclass(frozen=True)
class Kind:
    """A task that official checkpoints are trained for."""

    name: str
    config: type[TaskConfig]
    heads: Table
    """Names of the heads; those of a fine-tuned checkpoint begin with one that no other kind has."""

    @property
    def layout(self) -> Layout:
        """The names of its tensors."""
        kept = add_prefixes(roberta.POOLER, "text_transformer.", "")
        unused = _UNUSED if self == PAIRS else _UNUSED + _EARLIER_HEADS
        return Layout(MODEL | self.heads, kept, unused, scalars=("temperature",))


PAIRS = Kind("pairs", PairsConfig, MLM | ITM | ITC | {"temperature": "itc_heads.0.temperature"})
"""Pre-training, and retrieval with ITC and ITM."""
FROZEN_ITM = weight_and_bias({"itm_score.fc": "frozen_itm_head"})
"""The frozen ITM head of a ranking model, which is written; a trained model has no use for it, so reading skips it with
the other earlier heads."""
KINDS = (
    Kind("vqa", VQAConfig, _classifier("vqa_classifier")),
    Kind("nlvr2", NLVR2Config, _classifier("nlvr2_classifier")),
    Kind("entailment", EntailmentConfig, _classifier("snli_classifier")),
    Kind("ranking", RankingConfig, weight_and_bias({"rank_output": "itm_head"})),  # one row: see rank_to_itm
)
"""Fine-tuned checkpoints."""


def kind_of(names: Collection[str]) -> Kind:
    """Return the kind of a checkpoint with these tensors; ``DualfuseError`` if it has heads of several tasks."""
    kinds = [kind for kind in KINDS if next(iter(kind.heads)) in names]
    if len(kinds) > 1:
        heads = " and ".join(next(iter(kind.heads)).partition(".")[0] for kind in kinds)
        raise DualfuseError(f"this checkpoint has {heads}; a published one has a single task, so remove the others")
    return kinds[0] if kinds else PAIRS


def rank_to_itm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the single row of ``rank_output`` into an ITM head whose log-odds are that rank: a row of zeros above it."""
    rows = {name: tensors[name] for name in ("itm_head.weight", "itm_head.bias") if name in tensors}
    return dict(tensors) | {name: torch.cat([torch.zeros_like(row), row]) for name, row in rows.items()}


def itm_to_rank(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the second ITM row, the score, as ``rank_output``; inverts :func:`rank_to_itm`."""
    rows = {name: tensors[name] for name in ("itm_head.weight", "itm_head.bias") if name in tensors}
    return dict(tensors) | {name: row[1:] for name, row in rows.items()}


def model_of(tensors: Mapping[str, Tensor], heads: int = 0) -> BridgeTowerConfig:
    """Return the config of the model; ``heads`` 0: heads of 64 channels, as in every published one."""
    types, width = tensors["model.types.weight"].shape
    text_width = tensors["model.text_tower.words.word.weight"].shape[1]
    image, text = sizes.image_tower(tensors), sizes.text_tower(tensors, heads if text_width == width else 0)
    itc_image_feature: Literal["tower", "transformed"] = "tower" if text.width == image.width else "transformed"
    return BridgeTowerConfig(
        image=image,
        text=text,
        width=width,
        heads=heads or width // HEAD_WIDTH,
        feed_forward=len(tensors["model.layers.text.0.up.weight"]),
        layers=sizes.count(tensors, "model.layers.text."),
        bridge="add" if "model.first_norms.text.weight" in tensors else "none",
        all_layers="model.gates.text.gate.weight" in tensors,
        layer_norm_eps=LAYER_NORM_EPS,
        itc_image_feature=itc_image_feature,
        image_slots=types - 1,
    )


def task_of(tensors: Mapping[str, Tensor], kind: Kind) -> TaskConfig:
    """Return the task whose heads the checkpoint holds."""
    if kind == PAIRS:
        return _pairs(tensors)
    if kind.config is RankingConfig:
        return RankingConfig()
    scale = len(tensors["classifier.0.weight"]) / (2 * tensors["model.types.weight"].shape[1])
    if kind.config is VQAConfig:
        return VQAConfig(num_answers=len(tensors["classifier.3.weight"]), hidden_scale=scale)
    return NLVR2Config(hidden_scale=scale) if kind.config is NLVR2Config else EntailmentConfig(hidden_scale=scale)


def _pairs(tensors: Mapping[str, Tensor]) -> PairsConfig:
    itc = tensors.get("itc_heads.0.image.weight")
    has_itc = itc is not None
    return PairsConfig(
        itc_weight=float(has_itc),
        itm_weight=float("itm_head.weight" in tensors),
        mlm_weight=float("mlm_head.dense.weight" in tensors),
        itc_features="unimodal",
        itc_head=ITCHeadConfig(ITC_WIDTH if itc is None else len(itc), bias=True, temperature="plain"),
        negatives="local" if has_itc else "source",
        negative_hardness=float(has_itc),
        negatives_per_pair=2 if has_itc else 0,
        masking="token",
    )


def _recognize(source: Source) -> bool:
    names = [] if source.path.is_dir() else source.tensors
    return "cross_modal_text_transform.weight" in names and any(name.startswith("vit_model.") for name in names)


def _read(source: Source, tokenizer: str) -> ThirdPartyCheckpoint:
    if "vit_model.visual.conv1.weight" not in source.tensors:
        raise DualfuseError(f"the image tower of {source.path} is not CLIP's (METER also has Swin), as is needed here")
    kind, stored, notes = kind_of(source.tensors), source.weights.hyper_parameters, []
    imported = import_tensors(source.tensors, kind.layout)
    tensors = rank_to_itm(imported.tensors) if kind.config is RankingConfig else imported.tensors
    if kind.config is RankingConfig:
        notes.append("rank_output became the ITM head: its log-odds are the rank score")
    if not stored:
        notes.append("no hyper-parameters in the file: attention heads of 64 channels, as published")
    model = model_of(tensors, sizes.integer(stored, "num_heads"))
    is_retrieval = kind.config is RankingConfig or "itc_heads.0.image.weight" in tensors
    is_blip = (is_retrieval or kind != PAIRS) and model.bridge != "none"
    length = sizes.integer(stored, "max_text_len", RETRIEVAL_TEXT_LENGTH if is_retrieval else TEXT_LENGTH)
    data = Data(
        image_size=model.image.image_size,
        preprocess=OFFICIAL_BLIP if is_blip else OFFICIAL_CLIP,
        text_length=min(length, model.text.text_length),
        tokenizer=find_tokenizer(tokenizer, None, ROBERTA),
        batch_size=BATCH_SIZE,
    )
    recipe = Recipe(source.path.stem, model, task_of(tensors, kind), data, OPTIM, RUN)
    return ThirdPartyCheckpoint(recipe, tensors, imported.kept, import_report(str(source.path), imported, notes))


def _stores(recipe: Recipe) -> bool:
    return isinstance(recipe.model, BridgeTowerConfig) and isinstance(
        recipe.task, tuple(kind.config for kind in (PAIRS, *KINDS))
    )


def _write(converted: Converted) -> WrittenCheckpoint:
    """Write a checkpoint for the official loader, which is not strict: the dead parts of CLIP are missing."""
    model, task, data = converted.recipe.model, converted.recipe.task, converted.recipe.data
    assert isinstance(model, BridgeTowerConfig)  # _stores
    image, _ = storable_towers("the official BridgeTower", model)
    kind = next(kind for kind in (PAIRS, *KINDS) if isinstance(task, kind.config))
    _check(model, image, task)
    tensors, names = converted.task.state_dict(), kind.layout.names
    if kind.config is RankingConfig:
        tensors, names = itm_to_rank(tensors), names | FROZEN_ITM
    layout = replace(kind.layout, names=names, dropped=untrained_heads(task))
    exported = export_tensors(tensors, layout, converted.kept)
    notes = []
    if model.layer_norm_eps != LAYER_NORM_EPS:
        notes.append(f"epsilon of the cross-modal layers was {model.layer_norm_eps}; there it is {LAYER_NORM_EPS}")
    config = {"num_heads": model.heads, "image_size": image.image_size[0], "max_text_len": data.text_length}
    return WrittenCheckpoint(
        "bridgetower.ckpt",
        exported.tensors,
        export_report(converted, exported, notes=notes),
        "state_dict",
        {"hyper_parameters": {"config": config}},
    )


def _check(model: BridgeTowerConfig, image: CLIPViTConfig, task: TaskConfig) -> None:
    head = task.itc_head if isinstance(task, PairsConfig) and task.itc_weight else None
    reject_any(
        "the official BridgeTower",
        {
            f"bridge {model.bridge!r}": model.bridge not in ("add", "none"),
            "transform for each layer": not model.shared_transform,
            "convolutional stem": image.stem != "linear",
            "ITC head without biases": head is not None and not head.bias,
            "ITC head with a logarithmic temperature": head is not None and head.temperature != "plain",
            "ITC head for fused embeddings": head is not None and head.fused,
            "ITC on transformed image features": head is not None and model.itc_image_feature != "tower",
        },
    )


FORMAT = Format("official BridgeTower and METER", "official", _recognize, _read, _stores, _write)
