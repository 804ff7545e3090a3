"""Reads the config.json and preprocessor_config.json of BridgeTower in Hugging Face's transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dualfuse.convert.hugging_face import BRIDGES
from dualfuse.data.image.transform import HUGGING_FACE, Preprocess
from dualfuse.errors import DualfuseError
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig

Json = Mapping[str, Any]  # Any: what a file holds

EPSILON = 1e-5
"""Of every LayerNorm in transformers."""
TEXT_LENGTH = 50
"""Of the paper, where a file says nothing."""

_TOP: Json = {
    "hidden_size": 768,
    "hidden_act": "gelu",
    "layer_norm_eps": EPSILON,
    "link_tower_type": "add",
    "num_hidden_layers": 6,
    "share_cross_modal_transformer_layers": True,
    "share_link_tower_layers": False,
    "contrastive_hidden_size": 512,
}
TEXT: Json = {
    "vocab_size": 50_265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": EPSILON,
    "pad_token_id": 1,
    "is_decoder": False,
    "add_cross_attention": False,
}
IMAGE: Json = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_channels": 3,
    "patch_size": 16,
    "image_size": 288,
    "layer_norm_eps": EPSILON,
    "share_layernorm": True,
    "remove_last_layer": False,
}
_PARTS = {"": _TOP, "text_config.": TEXT, "vision_config.": IMAGE}
"""What transformers takes for a field that a file leaves out."""

_ONLY: Json = {
    "hidden_act": "gelu",
    "layer_norm_eps": EPSILON,
    "share_link_tower_layers": False,
    "text_config.hidden_act": "gelu",
    "text_config.layer_norm_eps": EPSILON,
    "text_config.type_vocab_size": 1,
    "text_config.is_decoder": False,
    "text_config.add_cross_attention": False,
    "vision_config.layer_norm_eps": EPSILON,
    "vision_config.num_channels": 3,
    "vision_config.share_layernorm": True,
}
"""The values that work: others fail in transformers, have no effect there, or have never been published."""

_OLD: Json = {
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


@dataclass(frozen=True)
class Read:
    """What both files say."""

    model: BridgeTowerConfig
    itc_width: int
    tie_words: bool
    """Whether the decoder of masked words is the word embedding."""
    image_size: tuple[int, int]
    text_length: int
    preprocess: Preprocess
    notes: tuple[str, ...]


def read_config(config: Json, processor: Json) -> Read:
    """Return what config.json and preprocessor_config.json (or {}) say; ``DualfuseError`` names a field that fails."""
    said = _flat(config)
    _refuse(config, said)
    text, image = _towers(said)
    model = BridgeTowerConfig(
        image=image,
        text=text,
        width=said["hidden_size"],
        heads=text.heads,
        feed_forward=text.feed_forward,
        layers=said["num_hidden_layers"],
        bridge=said["link_tower_type"],
        shared_transform=said["share_cross_modal_transformer_layers"],
        layer_norm_eps=EPSILON,
        itc_image_feature="transformed",
        dropout=said["text_config.hidden_dropout_prob"],
    )
    notes = []
    if said["text_config.attention_probs_dropout_prob"] != model.dropout:
        notes.append(
            f"attention_probs_dropout_prob {said['text_config.attention_probs_dropout_prob']} becomes "
            f"{model.dropout}, as hidden_dropout_prob: this matters to further training alone"
        )
    size = _size(processor, image.image_size[0], notes)
    length = config.get("max_text_len", processor.get("max_text_len", TEXT_LENGTH))
    preprocess = _looks(processor)
    return Read(
        model,
        said["contrastive_hidden_size"],
        bool(config.get("tie_word_embeddings", False)),
        (size, size),
        min(length, text.text_length),
        preprocess,
        tuple(notes),
    )


def _flat(config: Json) -> dict[str, Any]:
    """Return the fields that are read, defaults filled in, those of the towers under dotted names."""
    said = {}
    for prefix, defaults in _PARTS.items():
        part = config.get(prefix.rstrip("."), {}) if prefix else config
        if not isinstance(part, Mapping):
            raise DualfuseError(f"config.json has {prefix}{part!r} where the fields of a tower should be")
        said |= {prefix + name: part.get(name, default) for name, default in defaults.items()}
    for name, default in {
        prefix + key: value for prefix, part in _PARTS.items() for key, value in part.items()
    }.items():
        value = said[name][0] if isinstance(said[name], list) and len(set(said[name])) == 1 else said[name]
        if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, type(default) | int):
            raise DualfuseError(f"config.json has {name} {said[name]!r}; a value like {default!r} is needed")
        said[name] = value
    return said


def _refuse(config: Json, said: Json) -> None:
    for old, (new, harmless) in _OLD.items():
        top, _, _ = new.partition(".")
        if old in config and config[old] != harmless and top not in config:
            raise DualfuseError(
                f"config.json says {old} {config[old]!r}, a field of the first revisions that transformers does not "
                f"read any more; it reads {new}. Take a newer revision of these files"
            )
    for name, only in _ONLY.items():
        if said[name] != only:
            raise DualfuseError(f"config.json says {name} {said[name]!r}; only {only!r} works in transformers or here")
    if said["link_tower_type"] not in BRIDGES:
        raise DualfuseError(
            f"config.json says link_tower_type {said['link_tower_type']!r}; it can be {', '.join(BRIDGES)}"
        )
    if said["hidden_size"] != said["text_config.hidden_size"]:
        raise DualfuseError(
            f"config.json says hidden_size {said['hidden_size']} and text_config.hidden_size "
            f"{said['text_config.hidden_size']}; the cross-modal layers of transformers work only if they are equal"
        )
    blocks = said["vision_config.num_hidden_layers"] - said["vision_config.remove_last_layer"]
    if blocks != said["text_config.num_hidden_layers"]:
        raise DualfuseError(
            f"config.json describes {blocks} image blocks and {said['text_config.num_hidden_layers']} text layers; "
            "transformers numbers both alike, and fails or silently leaves image blocks out"
        )


def _towers(said: Json) -> tuple[RobertaConfig, CLIPViTConfig]:
    pad, size = said["text_config.pad_token_id"], said["vision_config.image_size"]
    text = RobertaConfig(
        width=said["text_config.hidden_size"],
        depth=said["text_config.num_hidden_layers"],
        heads=said["text_config.num_attention_heads"],
        feed_forward=said["text_config.intermediate_size"],
        vocab_size=said["text_config.vocab_size"],
        text_length=said["text_config.max_position_embeddings"] - pad - 1,
        pad_id=pad,
    )
    image = CLIPViTConfig(
        width=said["vision_config.hidden_size"],
        depth=text.depth,
        patch_size=said["vision_config.patch_size"],
        image_size=(size, size),
    )
    return text, image


def _size(processor: Json, model: int, notes: list[str]) -> int:
    size = processor.get("size", model)
    shown = size.get("shortest_edge", size.get("height")) if isinstance(size, Mapping) else size
    if shown != model:
        notes.append(f"preprocessor_config.json gives images of size {size}, the model reads {model}: so it is {model}")
    return model


def _looks(processor: Json) -> Preprocess:
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if not processor.get(name, True):
            raise DualfuseError(f"preprocessor_config.json says {name} false; images of all shapes need it")
    return Preprocess(
        HUGGING_FACE.resize_mode,
        HUGGING_FACE.resampling,
        tuple(processor.get("image_mean", HUGGING_FACE.mean)),
        tuple(processor.get("image_std", HUGGING_FACE.std)),
        processor.get("size_divisor", HUGGING_FACE.divisor),
    )
