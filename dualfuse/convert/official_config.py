"""The recipe of an official BridgeTower or METER checkpoint, told from its shapes and what it says of its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from dualfuse.convert import from_shapes
from dualfuse.convert.official import PAIRS, Kind
from dualfuse.data.image.transform import OFFICIAL_BLIP, OFFICIAL_CLIP
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import HEAD_WIDTH
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.ranking import RankingConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

EPSILON = 1e-12  # the official code makes these layers of a default configuration of RoBERTa
CONTRAST_WIDTH = 256
TEXT_LENGTH, RETRIEVAL_TEXT_LENGTH = 50, 40


def recipe_of(tensors: Mapping[str, Tensor], kind: Kind, said: Mapping[str, object], name: str) -> Recipe:
    """Return the recipe for tensors under our names; ``said`` are the checkpoint's hyper-parameters, if it has any."""
    model = model_of(tensors, _number(said, "num_heads", 0))
    retrieval = kind.name == "ranking" or "itc_heads.0.image.weight" in tensors
    fine_tuned = retrieval or kind != PAIRS
    length = _number(said, "max_text_len", RETRIEVAL_TEXT_LENGTH if retrieval else TEXT_LENGTH)
    data = Data(
        image_size=model.image.image_size,
        preprocess=OFFICIAL_BLIP if fine_tuned and model.bridge != "none" else OFFICIAL_CLIP,
        text_length=min(length, model.text.text_length),
    )
    return Recipe(name, model, task_of(tensors, kind), data)


def model_of(tensors: Mapping[str, Tensor], heads: int = 0) -> BridgeTowerConfig:
    """Return the numbers of the model; ``heads`` 0: of 64 channels, as every published one."""
    from_shapes.required(
        tensors,
        "model.types.weight",
        "model.image_tower.positions",
        "model.image_tower.projection.weight",
        "model.text_tower.words.word.weight",
        "model.text_tower.words.position.weight",
        "model.text_tower.words.token_type.weight",
        "model.text_tower.layers.0.up.weight",
        "model.layers.text.0.up.weight",
    )
    rows, width = tensors["model.types.weight"].shape
    image = from_shapes.image_tower(tensors)
    text_width = tensors["model.text_tower.words.word.weight"].shape[1]
    text = from_shapes.text_tower(tensors, heads if text_width == width else 0)
    compared: Literal["tower", "transformed"] = "tower" if text.width == image.width else "transformed"
    return BridgeTowerConfig(
        image=image,
        text=text,
        width=width,
        heads=heads or width // HEAD_WIDTH,
        feed_forward=len(tensors["model.layers.text.0.up.weight"]),
        layers=from_shapes.count(tensors, "model.layers.text."),
        bridge="add" if "model.first_norms.text.weight" in tensors else "none",
        all_layers="model.gates.text.gate.weight" in tensors,
        layer_norm_eps=EPSILON,
        itc_image_feature=compared,
        image_slots=rows - 1,
    )


def task_of(tensors: Mapping[str, Tensor], kind: Kind) -> TaskConfig:
    """Return the task whose heads the checkpoint holds."""
    if kind.name == "pairs":
        return _pairs(tensors)
    if kind.name == "ranking":
        return RankingConfig()
    from_shapes.required(tensors, "classifier.0.weight", "classifier.3.weight")
    hidden, _ = tensors["classifier.0.weight"].shape
    classes = len(tensors["classifier.3.weight"])
    scale = hidden / (2 * tensors["model.types.weight"].shape[1])
    if kind.name == "vqa":
        from dualfuse.tasks.finetune.vqa import VQAConfig

        return VQAConfig(num_answers=classes, hidden_scale=scale)
    if kind.name == "nlvr2":
        from dualfuse.tasks.finetune.nlvr2 import NLVR2Config

        return NLVR2Config(hidden_scale=scale)
    from dualfuse.tasks.finetune.entailment import EntailmentConfig

    return EntailmentConfig(hidden_scale=scale)


def _pairs(tensors: Mapping[str, Tensor]) -> PairsConfig:
    contrast = tensors.get("itc_heads.0.image.weight")
    trained = contrast is not None
    return PairsConfig(
        itc_weight=float(trained),
        itm_weight=float("itm_head.weight" in tensors),
        mlm_weight=float("mlm_head.dense.weight" in tensors),
        itc_features="unimodal",
        itc_head=ITCHeadConfig(
            len(contrast) if contrast is not None else CONTRAST_WIDTH, bias=True, temperature="plain"
        ),
        negatives="local" if trained else "source",
        negative_hardness=float(trained),
        negatives_per_pair=2 if trained else 0,
        masking="token",
    )


def _number(said: Mapping[str, object], name: str, default: int) -> int:
    value = said.get(name, default)
    return value if isinstance(value, int) else default
