"""The config.json and preprocessor_config.json of BridgeTower in Hugging Face's transformers, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dualfuse.convert.checkpoint import reject_any
from dualfuse.convert.formats.bridgetower import storable_towers
from dualfuse.convert.formats.dual_encoder import Json, section
from dualfuse.data.image.transform import HUGGING_FACE, Preprocess
from dualfuse.errors import DualfuseError
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig

BRIDGES = ("add", "scaled_add", "interpolate")
LAYER_NORM_EPS = 1e-5
"""Epsilon of every LayerNorm in transformers."""
TEXT_LENGTH = 50
"""The paper's text length, for files without max_text_len."""

_FIELDS = {
    "": {
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "bridge": "link_tower_type",
        "shared_transform": "share_cross_modal_transformer_layers",
    },
    "text_config.": {
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "feed_forward": "intermediate_size",
        "vocab_size": "vocab_size",
        "pad_id": "pad_token_id",
    },
    "vision_config.": {"width": "hidden_size", "depth": "num_hidden_layers", "patch_size": "patch_size"},
}
"""Names of the fields of a model and its towers."""

_FIXED: Mapping[str, Json] = {
    "": {"hidden_act": "gelu", "layer_norm_eps": LAYER_NORM_EPS, "share_link_tower_layers": False},
    "text_config.": {
        "hidden_act": "gelu",
        "layer_norm_eps": LAYER_NORM_EPS,
        "type_vocab_size": 1,
        "is_decoder": False,
        "add_cross_attention": False,
    },
    "vision_config.": {"layer_norm_eps": LAYER_NORM_EPS, "num_channels": 3, "share_layernorm": True},
}
"""Fields whose default is the only supported value: others fail there, have no effect, or have never been published."""

_OLD_FIELDS: Json = {
    "link_tower_shared": ("share_link_tower_layers", False),
    "cross_modal_transform_shared": ("share_cross_modal_transformer_layers", True),
    "vit_layernorm_shared": ("vision_config.share_layernorm", True),
    "vit_remove_last": ("vision_config.remove_last_layer", False),
    "vit_layernorm_init_from_vit": ("init_layernorm_from_vision_encoder", False),
    "num_layers": ("num_hidden_layers", None),
    "num_heads": ("text_config.num_attention_heads", None),
    "image_token_type_idx": ("nothing", 1),
}
"""Fields of the first revisions that transformers no longer reads, their new names, and the values without effect."""


def _stored(prefix: str, config: BridgeTowerConfig | RobertaConfig | CLIPViTConfig) -> dict[str, Any]:
    return {**_FIXED[prefix], **{theirs: getattr(config, ours) for ours, theirs in _FIELDS[prefix].items()}}


_DEFAULTS: Mapping[str, Json] = {
    "": _stored("", BridgeTowerConfig()) | {"contrastive_hidden_size": 512},
    "text_config.": _stored("text_config.", RobertaConfig())
    | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 514},
    "vision_config.": _stored("vision_config.", CLIPViTConfig()) | {"image_size": 288, "remove_last_layer": False},
}
"""The defaults of transformers, which are those of BridgeTower's base size."""


@dataclass(frozen=True)
class HuggingFaceConfig:
    """The content of both files."""

    model: BridgeTowerConfig
    itc_width: int
    tie_word_embeddings: bool
    """Whether the decoder of the MLM head is the word embedding."""
    text_length: int
    preprocess: Preprocess
    notes: tuple[str, ...]


def read_config(config: Json, processor: Json) -> HuggingFaceConfig:
    """Read config.json and preprocessor_config.json (or {}); ``DualfuseError`` names an unsupported field."""
    fields = _flatten(config)
    _check(config, fields)
    text, image = _read_towers(fields)
    dropout, notes = fields["text_config.hidden_dropout_prob"], []
    if (attention_dropout := fields["text_config.attention_probs_dropout_prob"]) != dropout:
        notes.append(
            f"attention_probs_dropout_prob {attention_dropout} becomes {dropout}, as hidden_dropout_prob: this affects "
            "only further training"
        )
    size = processor.get("size", image.image_size[0])
    if (size.get("shortest_edge", size.get("height")) if isinstance(size, Mapping) else size) != image.image_size[0]:
        notes.append(f"preprocessor_config.json has images of size {size}; the model's {image.image_size[0]} is used")
    model = BridgeTowerConfig(
        image=image,
        text=text,
        **_loaded("", fields),
        heads=text.heads,
        feed_forward=text.feed_forward,
        layer_norm_eps=LAYER_NORM_EPS,
        itc_image_feature="transformed",
        dropout=dropout,
    )
    text_length = config.get("max_text_len", processor.get("max_text_len", TEXT_LENGTH))
    return HuggingFaceConfig(
        model,
        fields["contrastive_hidden_size"],
        bool(config.get("tie_word_embeddings", False)),
        min(text_length, text.text_length),
        _read_preprocess(processor),
        tuple(notes),
    )


def write_config(model: BridgeTowerConfig, *, architecture: str, itc_width: int, text_length: int) -> dict[str, Any]:
    """Return the config.json of a model; ``DualfuseError`` lists what transformers does not have."""
    image, text = storable_towers("transformers' BridgeTower", model)
    reject_any(
        "transformers' BridgeTower",
        {
            f"bridge {model.bridge!r} (it has {', '.join(BRIDGES)})": model.bridge not in BRIDGES,
            "cross-modal layers fed by other tower layers than the last ones in order": model.resolved_tower_layers
            != tuple(reversed(range(model.layers))),
            f"{image.depth} image blocks beside {text.depth} text layers": image.depth != text.depth,
            "convolutional stem": image.stem != "linear",
            f"images of {image.image_size[0]} x {image.image_size[1]}": image.image_size[0] != image.image_size[1],
            f"{model.image_slots} images per text": model.image_slots != 1,
            "cross-modal layers of other width, heads or feed-forward than the text tower's": (
                (model.width, model.heads, model.feed_forward) != (text.width, text.heads, text.feed_forward)
            ),
        },
    )
    return {
        **_stored("", model),
        "architectures": [architecture],
        "model_type": "bridgetower",
        "num_attention_heads": model.heads,
        "init_layernorm_from_vision_encoder": False,
        "tie_word_embeddings": False,
        "contrastive_hidden_size": itc_width,
        "logit_scale_init_value": 2.6592,
        "max_text_len": text_length,
        "dtype": "float32",
        "text_config": _write_text(text, model.dropout),
        "vision_config": {
            **_stored("vision_config.", image),
            "model_type": "bridgetower_vision_model",
            "image_size": image.image_size[0],
            "remove_last_layer": False,
        },
    }


def write_processor(size: int, preprocess: Preprocess, *, text_length: int) -> dict[str, Any]:
    """Return the preprocessor_config.json closest to ``preprocess``."""
    return {
        "image_processor_type": "BridgeTowerImageProcessor",
        "processor_class": "BridgeTowerProcessor",
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad"), True),
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": size},
        "crop_size": {"shortest_edge": size},  # without it version 5 crops to 288, whatever the size
        "size_divisor": preprocess.divisor,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "max_text_len": text_length,
    }


def _flatten(config: Json) -> dict[str, Any]:
    """Return all fields, those of the towers under dotted names, with defaults for missing ones."""
    fields = {}
    for prefix, defaults in _DEFAULTS.items():
        part = section(config, prefix.rstrip("."), defaults)
        fields |= {prefix + name: value for name, value in part.items()}
    return fields


def _check(config: Json, fields: Json) -> None:
    for old, (new, harmless) in _OLD_FIELDS.items():
        if old in config and config[old] != harmless and new.partition(".")[0] not in config:
            raise DualfuseError(
                f"config.json has {old} {config[old]!r}, a field of the first revisions that transformers does not "
                f"read any more; it reads {new}. Take a newer revision of these files"
            )
    for name, supported in (
        (prefix + name, value) for prefix, fixed in _FIXED.items() for name, value in fixed.items()
    ):
        if (value := fields[name]) != supported:
            raise DualfuseError(f"config.json has {name} {value!r}; only {supported!r} works in transformers or here")
    if fields["link_tower_type"] not in BRIDGES:
        raise DualfuseError(
            f"config.json has link_tower_type {fields['link_tower_type']!r}; it can be {', '.join(BRIDGES)}"
        )
    if (width := fields["hidden_size"]) != (text_width := fields["text_config.hidden_size"]):
        raise DualfuseError(
            f"config.json has hidden_size {width} and text_config.hidden_size {text_width}; the cross-modal layers of "
            "transformers work only if they are equal"
        )
    blocks = fields["vision_config.num_hidden_layers"] - fields["vision_config.remove_last_layer"]
    if blocks != (layers := fields["text_config.num_hidden_layers"]):
        raise DualfuseError(
            f"config.json has {blocks} image blocks and {layers} text layers; transformers uses one index for both, "
            "and fails or silently ignores image blocks"
        )


def _loaded(prefix: str, fields: Json) -> dict[str, Any]:
    return {ours: fields[prefix + theirs] for ours, theirs in _FIELDS[prefix].items()}


def _read_towers(fields: Json) -> tuple[RobertaConfig, CLIPViTConfig]:
    text, size = _loaded("text_config.", fields), fields["vision_config.image_size"]
    text["text_length"] = fields["text_config.max_position_embeddings"] - text["pad_id"] - 1
    image = _loaded("vision_config.", fields) | {"depth": text["depth"], "image_size": (size, size)}
    return RobertaConfig(**text), CLIPViTConfig(**image)


def _write_text(text: RobertaConfig, dropout: float) -> dict[str, Any]:
    return {
        **_stored("text_config.", text),
        "model_type": "bridgetower_text_model",
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "max_position_embeddings": text.text_length + text.pad_id + 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "tie_word_embeddings": False,  # versions before 5 tie by this field alone
    }


def _read_preprocess(processor: Json) -> Preprocess:
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if not processor.get(name, True):
            raise DualfuseError(f"preprocessor_config.json has {name} false; images of all shapes need it")
    return Preprocess(
        HUGGING_FACE.resize_mode,
        HUGGING_FACE.resampling,
        tuple(processor.get("image_mean", HUGGING_FACE.mean)),
        tuple(processor.get("image_std", HUGGING_FACE.std)),
        processor.get("size_divisor", HUGGING_FACE.divisor),
    )
