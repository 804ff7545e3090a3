"""Files and flags of earlier versions, in today's names: the only module that knows the old ones.

Each function takes the content of an old file and returns it in today's names; files of today pass unchanged. To rename
a class or a field that files or flags mention, add a line here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from dualfuse.errors import DualfuseError

if TYPE_CHECKING:
    from pathlib import Path

    from dualfuse.config import JSON

Value = TypeVar("Value")
Values = Mapping[str, "JSON"] | Callable[[Any], "JSON"]  # Any: JSON values of one field

TENSORS = (
    (r"^match_head\b", "itm_head"),
    (r"^word_head\b", "mlm_head"),
    (r"^projections\b", "itc_heads"),
    (r"\blog_scale$", "logit_scale"),
    (r"\bexperts\.both\b", "experts.vl"),
    (r"\bcodebook\.vectors$", "codebook.embeddings"),
)
"""Parameters and buffers, also in patterns such as word_head.*: what is replaced, and by what."""

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

LOG = {
    "gradient_norm": "grad_norm",
    "contrast": "loss/itc",
    "match": "loss/itm",
    "words": "loss/mlm",
    "accuracy/words": "accuracy/mlm",
    "accuracy/match_right": "accuracy/itm_positive",
    "accuracy/match_wrong": "accuracy/itm_negative",
    "false_texts": "negatives",
    "count/steps_left_out": "count/steps_skipped",
} | {f"validation/{old}": f"validation/{new}" for old, new in METRICS.items()}
"""Names in log.jsonl."""

OPTIONS = {"names": "class_names", "pictures_only": "images_only", "vocabulary": "answers", "workers": "num_workers"}
"""Options of ``prepare``, there and on the command line."""

RECIPES = {"demo-contrast": "demo-itc", "bridgetower-base-pairs-contrast": "bridgetower-base-pairs-itc"}
"""Names of listed recipes."""

STAGES = {"contrast": "itc", "contrast_only": "itc_only"}
"""Names of their stages, which begin the flags of ``train``."""

SECTIONS = ("model", "task", "data", "optim", "run")
"""Groups of the flags of ``train``."""

PACKAGES = {".models.": "model", ".vq.autoencoder": "model", ".image.transform": "data"}
"""Parts of module names, and the group of flags that the configs there belong to; those of all others: task."""

FLAGS = {"batch": "batch_size", "sheet": "save_image"} | OPTIONS
"""Flags of commands other than ``train``."""


def _complement(share: float) -> float:
    """1 minus the old value."""
    return 1 - share


def _patterns(old: Iterable[str]) -> list[JSON]:
    """Patterns of the new parameter names."""
    return [tensor_name(pattern) for pattern in old]


CLASSES = """
recipe:Recipe
    both_experts=vl_expert_init
recipe:Data
    batch=batch_size block=shuffle_block looks=preprocess workers=num_workers
recipe:Optim
    clip=grad_clip_norm decay=decay_rule floor=min_lr fusing_rate=fusion_lr_mult head_rate=head_lr_mult
recipe:Run
    keep=keep_last nonfinite=on_nonfinite patience=dist_timeout recompute=activation_checkpointing shard=fsdp
data.images:Augment = data.image.transform:Augment
    changes=rand_augment_policy colour=color_jitter
data.images:Looks = data.image.transform:Preprocess
    fit=resize_mode kept=crop_fraction
data.block_mask:BlockMask = data.image.block_mask:BlockMask
data.joint_crop:JointCrop = data.image.joint_crop:JointCrop
data.mixing:Mix = data.image.mixup:Mixup
    fade=mixup_alpha cut=cutmix_alpha
layers.autoencoder:AutoencoderConfig = layers.vq.autoencoder:AutoencoderConfig
models.bridgetower:BridgeTowerConfig
    contrast_image=itc_image_feature epsilon=layer_norm_eps feeds=tower_layers initial_std=init_std
models.towers:ImageTowerConfig = models.towers.clip_vit:CLIPViTConfig
    patch=patch_size
models.towers:TextTowerConfig = models.towers.roberta:RobertaConfig
    vocabulary=vocab_size pad=pad_id
models.vlmo:Initial = models.vlmo:InitConfig
models.vlmo:VLMoConfig
    bias=share_relative_bias both_from=vl_expert_start initial=init patch=patch_size
    separate_until=separate_attention_until vocabulary=vocab_size
tasks.captioning:CaptioningConfig = tasks.finetune.captioning:CaptioningConfig
    mask_share=mask_probability initial_std=init_std
tasks.entailment:EntailmentConfig = tasks.finetune.entailment:EntailmentConfig
tasks.heads:Projection = layers.heads:ITCHeadConfig
tasks.image_classes:ImageClassesConfig = tasks.finetune.image_classification:ImageClassificationConfig
    classes=num_classes smoothing=label_smoothing erase=random_erasing mix=mixup
tasks.masked_image:MaskedImageConfig = tasks.pretrain.masked_image:MaskedImageConfig
tasks.masked_text:MaskedTextConfig = tasks.pretrain.masked_text:MaskedTextConfig
    mask_share=mlm_probability initial_std=init_std
tasks.nlvr2:NLVR2Config = tasks.finetune.nlvr2:NLVR2Config
tasks.pairs:PairsConfig = tasks.pretrain.pairs:PairsConfig
    contrast=itc_weight gather=gather_with_grad hardness=negative_hardness initial_std=init_std
    mask_share=mlm_probability match=itm_weight match_sees_masked=itm_on_masked_text patches_kept=patch_dropout
    projection=itc_head rows_at_once=grad_cache_chunk views=itc_features words=mlm_weight
tasks.ranking:RankingConfig = tasks.finetune.ranking:RankingConfig
    false_texts=num_negatives initial_std=init_std rows_at_once=grad_cache_chunk
tasks.reconstruction:ReconstructionConfig = tasks.pretrain.vq_tokenizer:VQTokenizerConfig
tasks.segmentation:SegmentationConfig = tasks.finetune.segmentation:SegmentationConfig
    after=feature_layers auxiliary=auxiliary_weight classes=num_classes ignored=ignore_index vary=augment
tasks.teacher:TaughtImageConfig = tasks.pretrain.masked_feature:MaskedFeatureConfig
tasks.vqa:VQAConfig = tasks.finetune.vqa:VQAConfig
    answers=num_answers vocabulary=answers
"""
"""Every class that files name: old address = new address, then the fields whose names changed."""

VALUES: Mapping[str, Values] = {
    "Recipe.train_only": _patterns,
    "Optim.adamw": {"released": "official"},
    "Optim.decay": {"released": "official"},
    "Run.best": METRICS,
    "Looks.fit": {"squeeze": "squash"},
    "VLMoConfig.bias": {"each": False, "alike": True},
    "PairsConfig.gather": {"gradient": True, "released": False},
    "PairsConfig.masking": {"words": "whole_word", "tokens": "token", "released": "official"},
    "PairsConfig.negatives": {"all": "global", "own": "local"},
    "PairsConfig.patches_kept": _complement,
    "PairsConfig.views": {"plain": "unimodal"},
}
"""Fields whose values changed: the new values by the old ones, or their function."""


@dataclass(frozen=True)
class Renamed:
    """What became of a class: its address, and the new names of the fields that have one."""

    address: str
    fields: dict[str, str] = field(default_factory=dict[str, str])


def _parse(table: str) -> dict[str, Renamed]:
    classes: dict[str, Renamed] = {}
    for line in table.strip().splitlines():
        if line.startswith(" "):
            names = (pair.partition("=") for pair in line.split())
            classes[next(reversed(classes))].fields.update({old: new for old, _, new in names})
        else:
            old, _, new = line.partition(" = ")
            classes[f"dualfuse.{old}"] = Renamed(f"dualfuse.{new or old}")
    return classes


_classes = _parse(CLASSES)


def config(data: JSON) -> JSON:
    """Return the JSON of a recipe, or of any config in it, with today's addresses, fields and values.

    Raises ``DualfuseError`` if an old field holds a value that it never took.
    """
    if isinstance(data, list):
        return [config(item) for item in data]
    if not isinstance(data, dict):
        return data
    values = {name: config(value) for name, value in data.items()}
    address = values.pop("is", None)
    renamed = _classes.get(address) if isinstance(address, str) else None
    if not renamed or (renamed.address == address and not renamed.fields.keys() & values.keys()):
        return ({"is": address} if "is" in data else {}) | values
    old_class = str(address).partition(":")[2]
    new = {renamed.fields.get(name, name): _value(f"{old_class}.{name}", value) for name, value in values.items()}
    return {"is": renamed.address} | new


def _value(name: str, value: Any) -> JSON:  # Any: JSON; a damaged file may hold values of any type
    values = VALUES.get(name, {})
    try:
        if callable(values):
            return values(value)
        return values[value] if isinstance(value, str) and value in values else value
    except TypeError as error:
        raise DualfuseError(f"{name} cannot be {value!r}") from error


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


def log(lines: Sequence[Mapping[str, Value]]) -> list[dict[str, Value]]:
    """Return the lines of log.jsonl with current names; a log is old if it holds gradient_norm."""
    is_old = any("gradient_norm" in line for line in lines)
    return [{LOG.get(name, name) if is_old else name: value for name, value in line.items()} for line in lines]


def prepared(content: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON
    """Return the content of prepared.json or progress.json with current keys and reasons."""
    if "left_out" not in content:
        return dict(content)
    new = {name.replace("left_out", "skipped"): value for name, value in content.items()}
    reasons = {
        name: {reason.replace("picture", "image"): value for reason, value in new[name].items()}
        for name in ("skipped", "examples", "changed", "noted", "noted_examples")
    }
    new["listing"] = ""  # a hash that depends on the wording of problems; empty: not compared
    return new | reasons | {"request": {OPTIONS.get(name, name): value for name, value in new["request"].items()}}


def rename_skipped(folder: Path, name: str) -> None:
    """Give the list of skipped items in an old folder of shards its current ``name``."""
    old = folder / "left-out.jsonl"
    if old.is_file() and not (folder / name).exists():
        old.rename(folder / name)


def new_flag(flag: str, value: str = "") -> str | None:
    """Return what a flag of earlier versions is now, such as "--data.batch-size"; None for a flag of today.

    Changed values follow in parentheses; a flag that differs between tasks gives several. A flag that kept its name is
    old only with an old ``value``.
    """
    *groups, name = flag.removeprefix("--").replace("-", "_").split(".")
    negation, name = ("no_", name.removeprefix("no_")) if name.startswith("no_") else ("", name)
    at = next((number for number, group in enumerate(groups) if group in SECTIONS), len(groups))
    section = groups[at] if at < len(groups) else ""
    fields = {("", FLAGS[name])} if not groups and name in FLAGS else _fields(section, name)
    inner = (next((new for _, new in _fields(section, group)), group) for group in groups[at + 1 :])
    new_groups = [*groups[: at + 1], *inner]
    answers: dict[str, Values] = {}
    for old_class, new in sorted(fields or {("", name)}):
        values = VALUES.get(f"{old_class}.{name}", {})
        if [*new_groups, new] != [*groups, name] or (not callable(values) and value in values):
            answers["--" + ".".join([*new_groups, negation + new]).replace("_", "-")] = values
    return " or ".join(new + _describe(values) for new, values in answers.items()) or None


def stage_flag(flag: str, stages: Sequence[str]) -> str:
    """Return a flag of ``train`` with the current name of its stage, unless one of ``stages`` has the old name."""
    old, dot, rest = flag.removeprefix("--").partition(".")
    new = STAGES.get(old.replace("-", "_"), "")
    return f"--{new}.{rest}" if dot and flag.startswith("--") and new in stages and old not in stages else flag


def _fields(section: str, name: str) -> set[tuple[str, str]]:
    """Return the old classes that had a field in a section of the recipe, and its new name in each, if it changed."""
    return {
        (old_class, renamed.fields.get(name, name))
        for address, renamed in _classes.items()
        for old_class in [address.partition(":")[2]]
        if _section(renamed.address) == section and (name in renamed.fields or f"{old_class}.{name}" in VALUES)
    }


def _describe(values: Values) -> str:
    changes = [values.__doc__ or ""] if callable(values) else [f"{old} is now {new}" for old, new in values.items()]
    return f" ({', '.join(changes).rstrip('.')})" if any(changes) else ""


def _section(address: str) -> str:
    """Return the section of a recipe, and of its flags, that a class belongs to; "" for the recipe itself."""
    module, _, name = address.partition(":")
    if module == "dualfuse.recipe":
        return name.lower().removeprefix("recipe")
    return next((section for part, section in PACKAGES.items() if part in module), "task")
