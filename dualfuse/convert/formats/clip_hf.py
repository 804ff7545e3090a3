"""CLIP in Hugging Face's layout (CLIPModel), in both directions: a dual encoder."""

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
from dualfuse.convert.formats.clip import HUGGING_FACE_TOWER
from dualfuse.convert.formats.dual_encoder import (
    CLIP_HEAD,
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
from dualfuse.convert.preprocessor import CLIP, FILE, read_preprocess, write_preprocess
from dualfuse.convert.rename import Layout, add_prefixes, export_tensors, import_tensors
from dualfuse.convert.tokenizer import CLIP_TOKENIZER, find_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.dual_encoder import DualEncoderConfig
from dualfuse.models.towers.clip_text import CLIPTextConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.recipe import Recipe
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.tensor_files import has_hugging_face_weights

LAYOUT = Layout(
    names=add_prefixes(HUGGING_FACE_TOWER, "vision_model.", "model.image_tower.")
    | add_prefixes(TEXT, "text_model.", "model.text_tower.")
    | CLIP_HEAD,
    unused=("*.embeddings.position_ids",),
    scalars=("logit_scale",),
)
"""CLIPModel, after fuse_qkv."""
_SHARED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_TEXT_DEFAULTS = _SHARED | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": 49_408,
}
_IMAGE_DEFAULTS = _SHARED | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
}
"""The defaults of transformers, which are those of ViT-B/32."""


def _recognize(source: Source) -> bool:
    return source.config.get("model_type") == "clip" and has_hugging_face_weights(source.path)


def _read(source: Source, tokenizer: str) -> ThirdPartyCheckpoint:
    model, width = _model(source.config), source.config.get("projection_dim", 512)
    preprocess, notes = read_preprocess(source.path, CLIP, model.image.image_size)
    imported = import_tensors(fuse_qkv(source.tensors, "CLIP"), LAYOUT)
    path = find_tokenizer(tokenizer, source.path, CLIP_TOKENIZER)
    recipe = dual_recipe(source, model, ITCHeadConfig(width), preprocess, path)
    return imported_checkpoint(source, recipe, imported, notes)


def _model(config: dict[str, Any]) -> DualEncoderConfig:
    image = section(config, "vision_config", _IMAGE_DEFAULTS)
    text = section(config, "text_config", _TEXT_DEFAULTS)
    if image["num_channels"] != 3:
        raise DualfuseError(f"config.json has num_channels {image['num_channels']}; images here have 3")
    return DualEncoderConfig(CLIPViTConfig.of_sizes(**read_sizes(image)), CLIPTextConfig(**read_sizes(text)))


def stores_clip(recipe: Recipe) -> bool:
    """Return whether a recipe is one of a CLIP."""
    return has_towers(recipe, CLIPViTConfig, CLIPTextConfig)


def clip_towers(model: DualEncoderConfig, task: PairsConfig, format_name: str) -> tuple[CLIPViTConfig, CLIPTextConfig]:
    """Return the towers of a CLIP; ``DualfuseError`` lists what the format does not have."""
    image, text, head = model.image, model.text, task.itc_head
    assert isinstance(image, CLIPViTConfig) and isinstance(text, CLIPTextConfig)  # by stores_clip
    reject_any(
        format_name,
        {
            "convolutional stem": image.stem != "linear",
            f"images of {image.image_size[0]} x {image.image_size[1]}": image.image_size[0] != image.image_size[1],
            "sigmoid loss": head.loss != "softmax",
            "bias of projections": head.bias,
            "hidden layer of projections": bool(head.hidden),
            "model without projections": head.projection != "linear",
            "plain temperature": head.temperature != "log",
        },
    )
    return image, text


def _write(converted: Converted) -> WrittenCheckpoint:
    model, task = dual_encoder(converted)
    image, text = clip_towers(model, task, "transformers' CLIP")
    exported, data, notes = export_tensors(converted.task.state_dict(), LAYOUT), converted.recipe.data, list[str]()
    files = {
        "config.json": _config(image, text, task.itc_head.width or image.width, data.tokenizer),
        FILE: write_preprocess(data.preprocess, image.image_size, "CLIP", notes),
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": "<|startoftext|>",
            **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
            "model_max_length": text.text_length,
        },
    }
    report = export_report(converted, exported, notes=notes)
    return WrittenCheckpoint("model.safetensors", split_qkv(exported.tensors), report, json_files=files)


def _config(image: CLIPViTConfig, text: CLIPTextConfig, width: int, tokenizer: str) -> dict[str, Any]:
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": width,
        "logit_scale_init_value": 2.6592,
        "dtype": "float32",
        "text_config": {
            **write_sizes(text),
            "model_type": "clip_text_model",
            "projection_dim": width,
            **special_ids(tokenizer),
        },
        "vision_config": {
            **write_sizes(image.resolved),
            "model_type": "clip_vision_model",
            "projection_dim": width,
        },
    }


FORMAT = Format("Hugging Face CLIP", "huggingface", _recognize, _read, stores_clip, _write)
