"""CLIP in open_clip's layout (open_clip_config.json beside the weights), in both directions: a dual encoder."""

from __future__ import annotations

from collections.abc import Mapping
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
from dualfuse.convert.formats.clip_hf import clip_towers, stores_clip
from dualfuse.convert.formats.clip_openai import LAYOUT, transpose, transpose_back
from dualfuse.convert.formats.dual_encoder import Json, dual_encoder, dual_recipe, imported_checkpoint
from dualfuse.convert.preprocessor import read_open_clip, write_open_clip
from dualfuse.convert.rename import export_tensors, import_tensors
from dualfuse.convert.tokenizer import CLIP_TOKENIZER, find_tokenizer
from dualfuse.data.image.transform import OFFICIAL_CLIP
from dualfuse.errors import DualfuseError
from dualfuse.files import read_json_object
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.layers.pre_norm import Activation
from dualfuse.models.dual_encoder import DualEncoderConfig
from dualfuse.models.towers.clip_text import CLIPTextConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.tensor_files import OPEN_CLIP_FILES

CONFIG = "open_clip_config.json"
_VISION: Json = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16, "head_width": 64, "mlp_ratio": 4.0}
_TEXT: Json = {"context_length": 77, "vocab_size": 49_408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
"""Fields that are read, and open_clip's defaults."""
_IGNORED = {
    "vision_cfg": ("patch_dropout", "output_tokens", "ls_init_value"),
    "text_cfg": ("output_tokens", "hf_tokenizer_name", "tokenizer_kwargs", "ls_init_value"),
}
"""Fields without effect on a trained model, as long as its tensors have names here."""
_FIXED = {
    "vision_cfg": {"pool_type": "tok", "no_ln_pre": False, "final_ln_after_pool": False, "attentional_pool": False},
    "text_cfg": {"pool_type": "argmax", "no_causal_mask": False, "proj_type": "linear", "proj_bias": False}
    | {"embed_cls": False, "final_ln_after_pool": False, "pad_id": 0},
}
"""Fields whose default is the only supported value."""


def _recognize(source: Source) -> bool:
    return source.path.is_dir() and (source.path / CONFIG).is_file()


def _read(source: Source, tokenizer: str) -> ThirdPartyCheckpoint:
    config = read_json_object(source.path / CONFIG)
    settings = config.get("model_cfg", {})
    model = _model(settings)
    imported = import_tensors(transpose(source.tensors), LAYOUT)
    path = find_tokenizer(tokenizer, source.path, CLIP_TOKENIZER, beside=True)
    preprocess = read_open_clip(config.get("preprocess_cfg", {}), OFFICIAL_CLIP)
    recipe = dual_recipe(source, model, ITCHeadConfig(settings["embed_dim"]), preprocess, path)
    return imported_checkpoint(source, recipe, imported, [])


def _model(settings: Json) -> DualEncoderConfig:
    """Return the model of a model_cfg. Raises DualfuseError for one that is not a CLIP of two Transformers."""
    if name := settings.get("vision_cfg", {}).get("timm_model_name"):
        raise DualfuseError(
            f"{CONFIG} has an image tower of timm, {name!r}; supported are open_clip's own Vision Transformers. SigLIP "
            "and SigLIP 2 are supported in the Hugging Face format, such as google/siglip-base-patch16-224"
        )
    if name := settings.get("text_cfg", {}).get("hf_model_name"):
        raise DualfuseError(
            f"{CONFIG} has a text tower of transformers, {name!r}; supported are open_clip's own text Transformers"
        )
    if others := settings.keys() - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale"}:
        raise DualfuseError(f"{CONFIG} has {', '.join(sorted(others))}; models with these fields are not supported")
    image, text = _section(settings, "vision_cfg", _VISION), _section(settings, "text_cfg", _TEXT)
    if isinstance(image["layers"], list):
        raise DualfuseError(f"{CONFIG} has a ResNet as image tower (layers {image['layers']}); use a ViT")
    activation: Activation = "quick_gelu" if settings.get("quick_gelu") else "gelu"
    size = image["image_size"] if isinstance(image["image_size"], list) else [image["image_size"]] * 2
    return DualEncoderConfig(
        CLIPViTConfig.of_sizes(
            width=image["width"],
            depth=image["layers"],
            patch_size=image["patch_size"],
            image_size=(size[0], size[1]),
            heads=image["width"] // image["head_width"],
            feed_forward=int(image["width"] * image["mlp_ratio"]),
            activation=activation,
        ),
        CLIPTextConfig(
            width=text["width"],
            depth=text["layers"],
            heads=text["heads"],
            feed_forward=int(text["width"] * text["mlp_ratio"]),
            vocab_size=text["vocab_size"],
            text_length=text["context_length"],
            activation=activation,
        ),
    )


def _section(settings: Json, name: str, defaults: Json) -> dict[str, Any]:
    """Return the fields of a tower. Raises DualfuseError for a field with an effect that is not supported."""
    part = settings.get(name, {})
    if not isinstance(part, Mapping):
        raise DualfuseError(f"{CONFIG} has {name} {part!r} instead of the fields of a tower")
    for key, value in part.items():
        supported = _FIXED[name].get(key)
        if key not in defaults and key not in _IGNORED[name] and value not in (None, False, supported):
            raise DualfuseError(f"{CONFIG} has {name}.{key} {value!r}; a CLIP with it is not supported")
    return {key: part.get(key, default) for key, default in defaults.items()}


def _write(converted: Converted) -> WrittenCheckpoint:
    model, task = dual_encoder(converted)
    image, text = clip_towers(model, task, "open_clip")
    resolved = image.resolved
    reject_any(
        "open_clip",
        {
            "towers with different activations": image.activation != text.activation,
            "GELU with tanh": image.activation == "gelu_tanh",
            "other epsilon of LayerNorms than 1e-5": (image.layer_norm_eps, text.layer_norm_eps) != (1e-5, 1e-5),
        },
    )
    exported, data, notes = export_tensors(converted.task.state_dict(), LAYOUT), converted.recipe.data, list[str]()
    settings = {
        "embed_dim": task.itc_head.width or image.width,
        "vision_cfg": {
            "image_size": image.image_size[0],
            "layers": image.depth,
            "width": image.width,
            "patch_size": image.patch_size,
            "head_width": image.width // resolved.heads,
            "mlp_ratio": resolved.feed_forward / image.width,
        },
        "text_cfg": {
            "context_length": text.text_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.depth,
            "mlp_ratio": text.feed_forward / text.width,
        },
    } | ({"quick_gelu": True} if image.activation == "quick_gelu" else {})
    files = {CONFIG: {"model_cfg": settings, "preprocess_cfg": write_open_clip(data.preprocess, notes)}}
    report = export_report(converted, exported, notes=notes)
    return WrittenCheckpoint(OPEN_CLIP_FILES[0], transpose_back(exported.tensors), report, json_files=files)


FORMAT = Format("open_clip", "open_clip", _recognize, _read, stores_clip, _write)
