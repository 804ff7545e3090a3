"""Reads what dualfuse wrote before its vocabulary changed: the only module that knows the old names.

Each function takes what an old file holds and returns it in today's names; files of today pass unchanged. To rename a
class or a field that files or flags mention, add a line here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dualfuse.errors import DualfuseError

if TYPE_CHECKING:
    from pathlib import Path

    from dualfuse.config import JSON

Value = TypeVar("Value")
Field = str | tuple[str, "Callable[[Any], Any]"]  # Any: JSON values of one field
"""The new name of a field; and, where its values changed too, what turns an old value into a new one."""

TENSORS = (
    (r"^match_head\b", "itm_head"),
    (r"^word_head\b", "mlm_head"),
    (r"^projections\b", "itc_heads"),
    (r"\blog_scale$", "logit_scale"),
    (r"\bexperts\.both\b", "experts.vl"),
    (r"\bcodebook\.vectors$", "codebook.embeddings"),
)
"""Parameters and buffers, also in patterns such as word_head.*: what is replaced, and by what."""

LOG = {
    "gradient_norm": "grad_norm",
    "contrast": "loss/itc",
    "match": "loss/itm",
    "words": "loss/mlm",
    "accuracy/words": "accuracy/mlm",
    "accuracy/match_right": "accuracy/itm_positive",
    "accuracy/match_wrong": "accuracy/itm_negative",
    "false_texts": "negatives",
}
"""Names of training steps in log.jsonl."""

METRICS = {
    "match/right": "itm/positive",
    "match/random": "itm/random_negative",
    "match/hard": "itm/hard_negative",
    "match/right_beats_hard": "itm/positive_above_hard",
    "words": "mlm/accuracy",
    "words/other_picture": "mlm/accuracy_other_image",
    "words/loss": "mlm/loss",
}
"""Names of evaluation results."""

PREPARED = {"left_out": "skipped", "left_out_size": "skipped_size"}
"""Keys of prepared.json and progress.json."""

REQUEST = {
    "names": "class_names",
    "pictures_only": "images_only",
    "vocabulary": "answers",
    "workers": "num_workers",
}
"""Options of ``prepare`` in those files."""


def _values(**new: JSON) -> Callable[[JSON], JSON]:
    return lambda value: new.get(value, value) if isinstance(value, str) else value


_official = _values(released="official")

CLASSES: Mapping[str, tuple[str, Mapping[str, Field]]] = {
    "dualfuse.recipe:Recipe": (
        "dualfuse.recipe:Recipe",
        {
            "both_experts": "vl_expert_init",
            "train_only": ("train_only", lambda patterns: [tensor_name(pattern) for pattern in patterns]),
        },
    ),
    "dualfuse.recipe:Data": (
        "dualfuse.recipe:Data",
        {"batch": "batch_size", "block": "shuffle_block", "looks": "preprocess", "workers": "num_workers"},
    ),
    "dualfuse.recipe:Optim": (
        "dualfuse.recipe:Optim",
        {
            "adamw": ("adamw", _official),
            "clip": "grad_clip_norm",
            "decay": ("decay_rule", _official),
            "floor": "min_lr",
            "fusing_rate": "fusion_lr_mult",
            "head_rate": "head_lr_mult",
        },
    ),
    "dualfuse.recipe:Run": (
        "dualfuse.recipe:Run",
        {
            "best": ("best", lambda name: METRICS.get(name, name)),
            "keep": "keep_last",
            "nonfinite": "on_nonfinite",
            "patience": "dist_timeout",
            "recompute": "activation_checkpointing",
            "shard": "fsdp",
        },
    ),
    "dualfuse.data.images:Augment": (
        "dualfuse.data.image.transform:Augment",
        {"changes": "rand_augment_policy", "colour": "color_jitter"},
    ),
    "dualfuse.data.images:Looks": (
        "dualfuse.data.image.transform:Preprocess",
        {"fit": ("resize_mode", _values(squeeze="squash")), "kept": "crop_fraction"},
    ),
    "dualfuse.data.block_mask:BlockMask": ("dualfuse.data.image.block_mask:BlockMask", {}),
    "dualfuse.data.joint_crop:JointCrop": ("dualfuse.data.image.joint_crop:JointCrop", {}),
    "dualfuse.data.mixing:Mix": (
        "dualfuse.data.image.mixup:Mixup",
        {"fade": "mixup_alpha", "cut": "cutmix_alpha"},
    ),
    "dualfuse.layers.autoencoder:AutoencoderConfig": ("dualfuse.layers.vq.autoencoder:AutoencoderConfig", {}),
    "dualfuse.models.bridgetower:BridgeTowerConfig": (
        "dualfuse.models.bridgetower:BridgeTowerConfig",
        {
            "contrast_image": "itc_image_feature",
            "epsilon": "layer_norm_eps",
            "feeds": "tower_layers",
            "initial_std": "init_std",
        },
    ),
    "dualfuse.models.towers:ImageTowerConfig": ("dualfuse.models.towers:ImageTowerConfig", {"patch": "patch_size"}),
    "dualfuse.models.towers:TextTowerConfig": (
        "dualfuse.models.towers:TextTowerConfig",
        {"vocabulary": "vocab_size", "pad": "pad_id"},
    ),
    "dualfuse.models.vlmo:Initial": ("dualfuse.models.vlmo:InitConfig", {}),
    "dualfuse.models.vlmo:VLMoConfig": (
        "dualfuse.models.vlmo:VLMoConfig",
        {
            "bias": ("share_relative_bias", _values(each=False, alike=True)),
            "both_from": "vl_expert_start",
            "initial": "init",
            "patch": "patch_size",
            "separate_until": "separate_attention_until",
            "vocabulary": "vocab_size",
        },
    ),
    "dualfuse.tasks.captioning:CaptioningConfig": (
        "dualfuse.tasks.finetune.captioning:CaptioningConfig",
        {"mask_share": "mask_probability", "initial_std": "init_std"},
    ),
    "dualfuse.tasks.entailment:EntailmentConfig": ("dualfuse.tasks.finetune.entailment:EntailmentConfig", {}),
    "dualfuse.tasks.heads:Projection": ("dualfuse.layers.heads:ITCHeadConfig", {}),
    "dualfuse.tasks.image_classes:ImageClassesConfig": (
        "dualfuse.tasks.finetune.image_classification:ImageClassificationConfig",
        {"classes": "num_classes", "smoothing": "label_smoothing", "erase": "random_erasing", "mix": "mixup"},
    ),
    "dualfuse.tasks.masked_image:MaskedImageConfig": ("dualfuse.tasks.pretrain.masked_image:MaskedImageConfig", {}),
    "dualfuse.tasks.masked_text:MaskedTextConfig": (
        "dualfuse.tasks.pretrain.masked_text:MaskedTextConfig",
        {"mask_share": "mlm_probability", "initial_std": "init_std"},
    ),
    "dualfuse.tasks.nlvr2:NLVR2Config": ("dualfuse.tasks.finetune.nlvr2:NLVR2Config", {}),
    "dualfuse.tasks.pairs:PairsConfig": (
        "dualfuse.tasks.pretrain.pairs:PairsConfig",
        {
            "contrast": "itc_weight",
            "gather": ("gather_with_grad", _values(gradient=True, released=False)),
            "hardness": "negative_hardness",
            "initial_std": "init_std",
            "mask_share": "mlm_probability",
            "masking": ("masking", _values(words="whole_word", tokens="token", released="official")),
            "match": "itm_weight",
            "match_sees_masked": "itm_on_masked_text",
            "negatives": ("negatives", _values(all="global", own="local")),
            "patches_kept": ("patch_dropout", lambda kept: 1 - kept),
            "projection": "itc_head",
            "rows_at_once": "grad_cache_chunk",
            "views": ("itc_features", _values(plain="unimodal")),
            "words": "mlm_weight",
        },
    ),
    "dualfuse.tasks.ranking:RankingConfig": (
        "dualfuse.tasks.finetune.ranking:RankingConfig",
        {"false_texts": "num_negatives", "initial_std": "init_std", "rows_at_once": "grad_cache_chunk"},
    ),
    "dualfuse.tasks.reconstruction:ReconstructionConfig": (
        "dualfuse.tasks.pretrain.vq_tokenizer:VQTokenizerConfig",
        {},
    ),
    "dualfuse.tasks.segmentation:SegmentationConfig": (
        "dualfuse.tasks.finetune.segmentation:SegmentationConfig",
        {
            "after": "feature_layers",
            "auxiliary": "auxiliary_weight",
            "classes": "num_classes",
            "ignored": "ignore_index",
            "vary": "augment",
        },
    ),
    "dualfuse.tasks.teacher:TaughtImageConfig": ("dualfuse.tasks.pretrain.masked_feature:MaskedFeatureConfig", {}),
    "dualfuse.tasks.vqa:VQAConfig": (
        "dualfuse.tasks.finetune.vqa:VQAConfig",
        {"answers": "num_answers", "vocabulary": "answers"},
    ),
}
"""The new address of each class that files name, and of its fields those whose names or values changed."""


def config(data: JSON) -> JSON:
    """Return the JSON of a recipe, or of any config in it, with today's addresses, fields and values.

    Raises ``DualfuseError`` if an old field holds a value that it never took.
    """
    if isinstance(data, list):
        return [config(item) for item in data]
    if not isinstance(data, dict):
        return data
    values = {name: config(value) for name, value in data.items()}
    address = values.get("is")
    if not (isinstance(address, str) and address in CLASSES):
        return values
    new_address, fields = CLASSES[address]
    renamed = {name for name, field in fields.items() if name != _name(field)}
    if address == new_address and not renamed & values.keys():
        return values
    return {"is": new_address} | {
        new: value for name, old in values.items() if name != "is" for new, value in [_field(address, name, old)]
    }


def _name(field: Field) -> str:
    return field if isinstance(field, str) else field[0]


def _field(address: str, name: str, value: JSON) -> tuple[str, JSON]:
    field = CLASSES[address][1].get(name, name)
    if isinstance(field, str):
        return field, value
    try:
        return field[0], field[1](value)
    except TypeError as error:
        raise DualfuseError(f"{name} of {address} cannot be {value!r}") from error


def is_old(data: JSON) -> bool:
    """Return whether the JSON of a recipe was written before the vocabulary changed."""
    return config(data) != data


def tensor_name(name: str) -> str:
    """Return the current name of a parameter or buffer."""
    for pattern, new in TENSORS:
        name = re.sub(pattern, new, name)
    return name


def tensors(old: Mapping[str, Value]) -> dict[str, Value]:
    """Return the tensors of an old model folder under their current names."""
    return {tensor_name(name): tensor for name, tensor in old.items()}


def metric_name(name: str) -> str:
    """Return the current name of an evaluation result."""
    return METRICS.get(name, name)


def log(lines: Sequence[Mapping[str, Value]]) -> list[dict[str, Value]]:
    """Return the lines of log.jsonl with current names; a log is old if it holds gradient_norm."""
    is_old = any("gradient_norm" in line for line in lines)
    return [{_log_name(name) if is_old else name: value for name, value in line.items()} for line in lines]


def _log_name(name: str) -> str:
    of_evaluation = name.removeprefix("validation/")
    return LOG.get(name, name) if of_evaluation == name else f"validation/{metric_name(of_evaluation)}"


def prepared(content: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON
    """Return the content of prepared.json or progress.json with current keys and reasons."""
    if "left_out" not in content:
        return dict(content)
    new = {PREPARED.get(name, name): value for name, value in content.items()}
    reasons = {
        name: {reason.replace("picture", "image"): value for reason, value in new[name].items()}
        for name in ("skipped", "examples", "changed", "noted", "noted_examples")
    }
    return new | reasons | {"request": {REQUEST.get(name, name): value for name, value in new["request"].items()}}


def rename_skipped(folder: Path, name: str) -> None:
    """Give the list of skipped items in an old folder of shards its current ``name``."""
    old = folder / "left-out.jsonl"
    if old.is_file() and not (folder / name).exists():
        old.rename(folder / name)
