"""What the checkpoint formats of dual encoders share: names of blocks, settings, and Hugging Face's sections."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dualfuse.convert.checkpoint import BATCH_SIZE, RUN, Converted, Source, ThirdPartyCheckpoint
from dualfuse.convert.formats.clip import HUGGING_FACE_BLOCKS, concatenate_qkv
from dualfuse.convert.rename import ImportedTensors, Table, weight_and_bias
from dualfuse.convert.report import import_report
from dualfuse.data.image.transform import Augment, Preprocess
from dualfuse.data.text.tokenizer import load_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.dual_encoder import DualEncoderConfig
from dualfuse.models.towers.base import ImageTowerConfig, TextTowerConfig
from dualfuse.recipe import Data, Optim, Recipe
from dualfuse.tasks.pretrain.pairs import PairsConfig

Json = Mapping[str, Any]  # Any: whatever a file holds

OPTIM = Optim(lr=1e-5, warmup=0.1)
"""Optimizer settings of a converted checkpoint, for further training."""
AUGMENT = Augment(crop=(0.9, 1.0), flip=0.0, rand_augment=False)
"""The augmentation of open_clip: a random resized crop of at least 90 % of the area."""
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
"""Names of activations in transformers and here."""
FIELDS = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "layer_norm_eps": "layer_norm_eps",
    "patch_size": "patch_size",
    "vocab_size": "vocab_size",
    "text_length": "max_position_embeddings",
}
"""Fields of a tower here, and in a section of config.json."""
HEAD = "itc_heads.0."

CLIP_HEAD: Table = {
    "visual_projection.weight": f"{HEAD}image.weight",
    "text_projection.weight": f"{HEAD}text.weight",
    "logit_scale": f"{HEAD}logit_scale",
}
"""Names of CLIP's projections and logit scale."""
TEXT: Table = (
    {
        "embeddings.token_embedding.weight": "words.word.weight",
        "embeddings.position_embedding.weight": "words.position.weight",
    }
    | weight_and_bias({"final_layer_norm": "norm_after"})
    | HUGGING_FACE_BLOCKS
)
"""Hugging Face's names of both text towers."""


def fuse_qkv(tensors: Mapping[str, Tensor], model: str) -> dict[str, Tensor]:
    """Concatenate the query, key and value projections of both towers, in this order."""
    return concatenate_qkv(tensors, r"(.*\.self_attn\.)({})(_proj\..*)", ("q", "k", "v"), model)


def split_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`fuse_qkv`."""
    split = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*\.self_attn\.)qkv(_proj\..*)", name):
            split |= {match[1] + part + match[2]: piece for part, piece in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            split[name] = tensor
    return split


def section(config: Json, name: str, defaults: Json) -> dict[str, Any]:
    """Return the fields of a part of config.json, with ``defaults`` for missing ones; without a ``name``, of all of it.

    A list of equal numbers, such as the patch size [16, 16], is read as that number. Raises DualfuseError for a value
    of another type than its default.
    """
    part = config.get(name, {}) if name else config
    if not isinstance(part, Mapping):
        raise DualfuseError(f"config.json has {name} {part!r} instead of the fields of a tower")
    fields = {}
    for key, default in defaults.items():
        value = part.get(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, type(default) | int):
            full_name = f"{name}.{key}" if name else key
            raise DualfuseError(f"config.json has {full_name} {value!r}; a value like {default!r} is needed")
        fields[key] = value
    return fields


def read_sizes(fields: Json) -> dict[str, Any]:
    """Return the fields of a tower here from those of its :func:`section`."""
    sizes = {ours: fields[theirs] for ours, theirs in FIELDS.items() if theirs in fields}
    if "image_size" in fields:
        sizes["image_size"] = (fields["image_size"],) * 2
    return sizes | {"activation": activation(fields["hidden_act"])}


def write_sizes(tower: Any) -> dict[str, Any]:  # Any: a tower's config
    """Return the fields of a section of config.json from those of a tower; inverts :func:`read_sizes`."""
    fields = {theirs: getattr(tower, ours) for ours, theirs in FIELDS.items() if hasattr(tower, ours)}
    fields["hidden_act"] = activation_name(tower.activation)
    if isinstance(tower, ImageTowerConfig):
        fields |= {"image_size": tower.image_size[0], "num_channels": 3}
    return fields


def activation(name: object) -> Any:  # Any: a literal of dualfuse.layers.pre_norm
    """Return the name here of an activation in transformers. Raises DualfuseError for another one."""
    if name not in ACTIVATIONS:
        raise DualfuseError(f"config.json has hidden_act {name!r}; supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[str(name)]


def activation_name(name: str) -> str:
    """Return the name in transformers of an activation."""
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == name)


def dual_recipe(
    source: Source, model: DualEncoderConfig, head: ITCHeadConfig, preprocess: Preprocess, tokenizer: str
) -> Recipe:
    """Return the recipe of a dual encoder, for evaluation and for further training with ITC."""
    data = Data(
        image_size=model.image.image_size,
        preprocess=preprocess,
        augment=AUGMENT,
        text_length=model.text.text_length,
        tokenizer=tokenizer,
        batch_size=BATCH_SIZE,
    )
    task = PairsConfig(itm_weight=0.0, mlm_weight=0.0, itc_features="unimodal", itc_head=head)
    return Recipe(source.path.name, model, task, data, OPTIM, RUN)


def imported_checkpoint(
    source: Source, recipe: Recipe, imported: ImportedTensors, notes: list[str]
) -> ThirdPartyCheckpoint:
    """Return the checkpoint of tensors under dualfuse names."""
    report = import_report(str(source.path), imported, notes)
    return ThirdPartyCheckpoint(recipe, imported.tensors, imported.kept, report)


def has_towers(recipe: Recipe, image: type[ImageTowerConfig], text: type[TextTowerConfig]) -> bool:
    """Return whether a recipe is one of a dual encoder of these towers."""
    model = recipe.model
    is_dual = isinstance(model, DualEncoderConfig) and isinstance(recipe.task, PairsConfig)
    return is_dual and isinstance(model.image, image) and isinstance(model.text, text)


def dual_encoder(converted: Converted) -> tuple[DualEncoderConfig, PairsConfig]:
    """Return the model and the task of a recipe that the formats of dual encoders store."""
    model, task = converted.recipe.model, converted.recipe.task
    assert isinstance(model, DualEncoderConfig) and isinstance(task, PairsConfig)  # by stores()
    return model, task


def special_ids(tokenizer: str) -> dict[str, int]:
    """Return the fields of a text section of config.json that name special tokens."""
    loaded = load_tokenizer(tokenizer)
    ids = {"bos_token_id": loaded.start, "eos_token_id": loaded.end, "pad_token_id": loaded.pad_id}
    return {name: number for name, number in ids.items() if number >= 0}
