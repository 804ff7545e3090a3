"""What the checkpoint formats of dual encoders share: names of blocks, settings, and Hugging Face's sections."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dualfuse.convert.checkpoint import BATCH_SIZE, RUN, Converted, Source
from dualfuse.convert.formats.clip import concatenate_qkv
from dualfuse.convert.rename import Table, add_prefixes, weight_and_bias
from dualfuse.data.image.transform import Augment, Preprocess
from dualfuse.data.text.tokenizer import load_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.dual_encoder import DualEncoderConfig
from dualfuse.recipe import Data, Optim, Recipe
from dualfuse.tasks.pretrain.pairs import PairsConfig

Json = Mapping[str, Any]  # Any: whatever a file holds

OPTIM = Optim(lr=1e-5, warmup=0.1)
"""Optimizer settings of a converted checkpoint, for further training."""
AUGMENT = Augment(crop=(0.9, 1.0), flip=0.0, rand_augment=False)
"""The augmentation of open_clip: a random resized crop of at least 90 % of the area."""
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
"""Names of activations in transformers and here."""
HEAD = "itc_heads.0."

BLOCKS: Table = add_prefixes(
    weight_and_bias(
        {
            "self_attn.qkv_proj": "attention.qkv",  # after fuse_qkv
            "self_attn.out_proj": "attention.projection",
            "layer_norm1": "norm_1",
            "layer_norm2": "norm_2",
            "mlp.fc1": "up",
            "mlp.fc2": "down",
        }
    ),
    "encoder.layers.{}.",
    "blocks.{}.",
)
"""Hugging Face's names of the blocks of all four towers."""
TEXT: Table = (
    {
        "embeddings.token_embedding.weight": "words.word.weight",
        "embeddings.position_embedding.weight": "words.position.weight",
    }
    | weight_and_bias({"final_layer_norm": "norm_after"})
    | BLOCKS
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
    """Return the fields of a part of config.json, with ``defaults`` for missing ones.

    Raises DualfuseError for a value of another type than its default.
    """
    part = config.get(name, {})
    if not isinstance(part, Mapping):
        raise DualfuseError(f"config.json has {name} {part!r} instead of the fields of a tower")
    fields = {key: part.get(key, default) for key, default in defaults.items()}
    for key, value in fields.items():
        default = defaults[key]
        if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, type(default) | int):
            raise DualfuseError(f"config.json has {name}.{key} {value!r}; a value like {default!r} is needed")
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
