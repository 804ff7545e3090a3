"""SigLIP and SigLIP 2 of fixed resolution in Hugging Face's layout (SiglipModel), in both directions."""

from __future__ import annotations

from typing import Any

from dualfuse.convert.checkpoint import (
    Converted,
    Format,
    Source,
    ThirdPartyCheckpoint,
    WrittenCheckpoint,
    export_report,
    reject_any,
)
from dualfuse.convert.formats.clip import HUGGING_FACE_BLOCKS
from dualfuse.convert.formats.dual_encoder import (
    HEAD,
    TEXT,
    dual_encoder,
    dual_recipe,
    fuse_qkv,
    has_towers,
    imported_checkpoint,
    read_sizes,
    section,
    special_ids,
    split_qkv,
    write_sizes,
)
from dualfuse.convert.preprocessor import FILE, SIGLIP, read_preprocess, write_preprocess
from dualfuse.convert.rename import Layout, Table, add_prefixes, export_tensors, import_tensors, weight_and_bias
from dualfuse.convert.tokenizer import GEMMA_VOCABULARY, SIGLIP_2_TOKENIZER, SIGLIP_TOKENIZER, find_tokenizer
from dualfuse.data.text.tokenizer import load_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.dual_encoder import DualEncoderConfig
from dualfuse.models.towers.siglip import SiglipTextConfig, SiglipViTConfig
from dualfuse.recipe import Recipe

_IMAGE: Table = (
    {
        "embeddings.position_embedding.weight": "positions",
        "head.probe": "pooling.probe",
        "head.attention.in_proj_weight": "pooling.attention.qkv.weight",
        "head.attention.in_proj_bias": "pooling.attention.qkv.bias",
    }
    | weight_and_bias(
        {
            "embeddings.patch_embedding": "projection",
            "post_layernorm": "norm_after",
            "head.attention.out_proj": "pooling.attention.projection",
            "head.layernorm": "pooling.norm",
            "head.mlp.fc1": "pooling.up",
            "head.mlp.fc2": "pooling.down",
        }
    )
    | HUGGING_FACE_BLOCKS
)
LAYOUT = Layout(
    names=add_prefixes(_IMAGE, "vision_model.", "model.image_tower.")
    | add_prefixes(TEXT | weight_and_bias({"head": "projection"}), "text_model.", "model.text_tower.")
    | {name: HEAD + name for name in ("logit_scale", "logit_bias")},
    unused=("*.embeddings.position_ids",),
)
"""SiglipModel, after fuse_qkv."""
_DEFAULTS = {
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_TEXT_DEFAULTS = _DEFAULTS | {"max_position_embeddings": 64, "vocab_size": 32_000}
_IMAGE_DEFAULTS = _DEFAULTS | {"image_size": 224, "patch_size": 16, "num_channels": 3, "vision_use_head": True}
"""The defaults of transformers, which are those of the base size."""


def _recognize(source: Source) -> bool:
    return source.config.get("model_type") == "siglip"


def _read(source: Source, tokenizer: str) -> ThirdPartyCheckpoint:
    text = section(source.config, "text_config", _TEXT_DEFAULTS)
    default = SIGLIP_2_TOKENIZER if text["vocab_size"] == GEMMA_VOCABULARY else SIGLIP_TOKENIZER
    path = find_tokenizer(tokenizer, source.path, default)
    model = _model(source.config, text, load_tokenizer(path).pad_id)
    preprocess, notes = read_preprocess(source.path, SIGLIP, model.image.image_size)
    imported = import_tensors(fuse_qkv(source.tensors, "SigLIP"), LAYOUT)
    recipe = dual_recipe(source, model, ITCHeadConfig(projection="none", loss="sigmoid"), preprocess, path)
    return imported_checkpoint(source, recipe, imported, notes)


def _model(config: dict[str, Any], text: dict[str, Any], pad_id: int) -> DualEncoderConfig:
    image = section(config, "vision_config", _IMAGE_DEFAULTS)
    if image["num_channels"] != 3 or not image["vision_use_head"]:
        raise DualfuseError(
            f"config.json has num_channels {image['num_channels']} and vision_use_head {image['vision_use_head']}; "
            "only 3 channels and models with the pooling head are supported"
        )
    projection = config.get("text_config", {}).get("projection_size", text["hidden_size"])
    if projection != image["hidden_size"]:
        raise DualfuseError(
            f"config.json has text_config.projection_size {projection} and vision_config.hidden_size "
            f"{image['hidden_size']}; images and texts can be compared only if they are equal"
        )
    return DualEncoderConfig(
        SiglipViTConfig(**read_sizes(image)),
        SiglipTextConfig(**read_sizes(text), projection_width=projection, pad_id=pad_id),
    )


def _stores(recipe: Recipe) -> bool:
    return has_towers(recipe, SiglipViTConfig, SiglipTextConfig)


def _write(converted: Converted) -> WrittenCheckpoint:
    model, task = dual_encoder(converted)
    image, text, head = model.image, model.text, task.itc_head
    assert isinstance(image, SiglipViTConfig) and isinstance(text, SiglipTextConfig)  # _stores
    reject_any(
        "transformers' SigLIP",
        {
            "softmax loss": head.loss != "sigmoid",
            "projections of both towers": head.projection != "none",
            "plain temperature": head.temperature != "log",
            f"images of {image.image_size[0]} x {image.image_size[1]}": image.image_size[0] != image.image_size[1],
        },
    )
    exported, data, notes = export_tensors(converted.task.state_dict(), LAYOUT), converted.recipe.data, list[str]()
    special = load_tokenizer(data.tokenizer)
    names = {"eos_token": special.end, "pad_token": text.pad_id}
    files = {
        "config.json": _config(image, text, data.tokenizer),
        FILE: write_preprocess(data.preprocess, image.image_size, "Siglip", notes),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: special.tokenizer.id_to_token(number) for name, number in names.items()},
            "model_max_length": text.text_length,
        },
    }
    report = export_report(converted, exported, notes=notes)
    return WrittenCheckpoint("model.safetensors", split_qkv(exported.tensors), report, json_files=files)


def _config(image: SiglipViTConfig, text: SiglipTextConfig, tokenizer: str) -> dict[str, Any]:
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": "float32",
        "text_config": {
            **write_sizes(text),
            "model_type": "siglip_text_model",
            "projection_size": text.projection_width,
            **special_ids(tokenizer),
            "pad_token_id": text.pad_id,
        },
        "vision_config": {**write_sizes(image), "model_type": "siglip_vision_model", "vision_use_head": True},
    }


FORMAT = Format("Hugging Face SigLIP", "huggingface", _recognize, _read, _stores, _write)
