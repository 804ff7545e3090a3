"""Writes the config.json and preprocessor_config.json of BridgeTower in Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

from dualfuse.convert.hugging_face import BRIDGES
from dualfuse.convert.hugging_face_config import EPSILON, IMAGE, TEXT
from dualfuse.data.image.transform import Preprocess
from dualfuse.errors import DualfuseError
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig


def write_config(model: BridgeTowerConfig, *, architecture: str, itc_width: int, text_length: int) -> dict[str, Any]:
    """Return the config.json of a model; ``DualfuseError`` says what of it transformers cannot do."""
    image, text = _writable_towers(model)
    return {
        "architectures": [architecture],
        "model_type": "bridgetower",
        "hidden_size": model.width,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "hidden_act": "gelu",
        "layer_norm_eps": EPSILON,
        "link_tower_type": model.bridge,
        "share_link_tower_layers": False,
        "share_cross_modal_transformer_layers": model.shared_transform,
        "init_layernorm_from_vision_encoder": False,
        "tie_word_embeddings": False,
        "contrastive_hidden_size": itc_width,
        "logit_scale_init_value": 2.6592,
        "max_text_len": text_length,
        "dtype": "float32",
        "text_config": _text(text, model.dropout),
        "vision_config": _image(image),
    }


def _text(text: RobertaConfig, dropout: float) -> dict[str, Any]:
    return {
        **TEXT,
        "model_type": "bridgetower_text_model",
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.heads,
        "intermediate_size": text.feed_forward,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "max_position_embeddings": text.text_length + text.pad_id + 1,
        "pad_token_id": text.pad_id,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "tie_word_embeddings": False,  # versions before 5 tie by this field alone
    }


def _image(image: CLIPViTConfig) -> dict[str, Any]:
    return {
        **IMAGE,
        "model_type": "bridgetower_vision_model",
        "hidden_size": image.width,
        "num_hidden_layers": image.depth,
        "patch_size": image.patch_size,
        "image_size": image.image_size[0],
    }


def write_processor(size: int, preprocess: Preprocess, *, text_length: int) -> dict[str, Any]:
    """Return the preprocessor_config.json that shows images as ``looks`` does, as nearly as transformers can."""
    return {
        "image_processor_type": "BridgeTowerImageProcessor",
        "processor_class": "BridgeTowerProcessor",
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": size},
        "crop_size": {"shortest_edge": size},  # without it version 5 crops to 288, whatever the size
        "size_divisor": preprocess.divisor,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "max_text_len": text_length,
    }


def _writable_towers(model: BridgeTowerConfig) -> tuple[CLIPViTConfig, RobertaConfig]:
    """Return the configs of both towers; raises DualfuseError for a model that transformers does not have."""
    image, text = model.image, model.text
    if not isinstance(image, CLIPViTConfig) or not isinstance(text, RobertaConfig):
        raise DualfuseError(f"transformers has no BridgeTower of {type(image).__name__} and {type(text).__name__}")
    reasons = {
        f"bridge {model.bridge!r} (it has {', '.join(BRIDGES)})": model.bridge not in BRIDGES,
        "other layers that feed than the top ones in order": model.resolved_tower_layers
        != tuple(reversed(range(model.layers))),
        f"{image.depth} image blocks beside {text.depth} text layers": image.depth != text.depth,
        "a convolutional stem": image.stem != "linear",
        f"images of {image.image_size[0]} x {image.image_size[1]}": image.image_size[0] != image.image_size[1],
        f"{model.image_slots} images per text": model.image_slots != 1,
        "cross-modal layers of other width, heads or feed-forward than the text tower's": (
            (model.width, model.heads, model.feed_forward) != (text.width, text.heads, text.feed_forward)
        ),
    }
    if impossible := [reason for reason, holds in reasons.items() if holds]:
        raise DualfuseError(f"transformers has no BridgeTower with {'; '.join(impossible)}")
    return image, text
