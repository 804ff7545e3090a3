"""CLIP in OpenAI's layout, a TorchScript archive or a state dict, in both directions: a dual encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dualfuse.convert import shapes as sizes
from dualfuse.convert.checkpoint import (
    Converted,
    Format,
    Source,
    ThirdPartyCheckpoint,
    WrittenCheckpoint,
    export_report,
    reject_any,
)
from dualfuse.convert.formats import clip
from dualfuse.convert.formats.clip_hf import clip_towers, stores_clip
from dualfuse.convert.formats.dual_encoder import CLIP_HEAD, HEAD, dual_encoder, dual_recipe, imported_checkpoint
from dualfuse.convert.rename import Layout, add_prefixes, export_tensors, import_tensors, weight_and_bias
from dualfuse.convert.tokenizer import CLIP_TOKENIZER, find_tokenizer
from dualfuse.data.image.transform import OFFICIAL_CLIP
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.layers.pre_norm import Activation
from dualfuse.models.dual_encoder import DualEncoderConfig
from dualfuse.models.towers.clip_text import CLIPTextConfig
from dualfuse.models.towers.clip_vit import HEAD_WIDTH

MARK = "visual.class_embedding"
"""A tensor of every Vision Transformer in this layout."""
ARCHIVE = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives hold beside the tensors."""
PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
"""Matrices (width, D) that are transposed, and their names afterwards."""
_TEXT = {name: ours for name, ours in clip.OPENAI_BLOCKS.items() if name.startswith("transformer.")}
_TEXT |= {"token_embedding.weight": "words.word.weight", "positional_embedding": "words.position.weight"}
_TEXT |= weight_and_bias({"ln_final": "norm_after"})
LAYOUT = Layout(
    names=add_prefixes(clip.OPENAI_TOWER, "visual.", "model.image_tower.")
    | add_prefixes(_TEXT, "", "model.text_tower.")
    | CLIP_HEAD,
    unused=(*ARCHIVE, "attn_mask"),
    scalars=("logit_scale",),
)
"""After :func:`transpose`."""


def transpose(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the projections as those of linear layers."""
    return {PROJECTIONS.get(name, name): each.T if name in PROJECTIONS else each for name, each in tensors.items()}


def transpose_back(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`transpose`."""
    names = {after: before for before, after in PROJECTIONS.items()}
    return {names.get(name, name): each.T.contiguous() if name in names else each for name, each in tensors.items()}


def infer_model(tensors: Mapping[str, Tensor], activation: Activation) -> DualEncoderConfig:
    """Return the sizes of a CLIP from its tensors under dualfuse names; heads have 64 channels, as OpenAI's."""
    image = sizes.image_tower(tensors)
    vocabulary, text_width = tensors["model.text_tower.words.word.weight"].shape
    between = len(tensors["model.image_tower.blocks.0.up.weight"])
    return DualEncoderConfig(
        replace(image, feed_forward=0 if between == 4 * image.width else between, activation=activation),
        CLIPTextConfig(
            width=text_width,
            depth=sizes.count(tensors, "model.text_tower.blocks."),
            heads=text_width // HEAD_WIDTH,
            feed_forward=len(tensors["model.text_tower.blocks.0.up.weight"]),
            vocab_size=vocabulary,
            text_length=len(tensors["model.text_tower.words.position.weight"]),
            activation=activation,
        ),
    )


def _recognize(source: Source) -> bool:
    return source.path.is_file() and {MARK, "visual.proj", "token_embedding.weight"} <= source.tensors.keys()


def _read(source: Source, tokenizer: str) -> ThirdPartyCheckpoint:
    imported = import_tensors(transpose(source.tensors), LAYOUT)
    notes = []
    if not any(name in source.tensors for name in ARCHIVE):
        notes.append(
            "the file is a plain state dict, read as OpenAI's CLIP with quick GELU; for weights of open_clip give the "
            "folder with their open_clip_config.json"
        )
    model = infer_model(imported.tensors, "quick_gelu")
    path = find_tokenizer(tokenizer, source.path.parent, CLIP_TOKENIZER, beside=True)
    head = ITCHeadConfig(len(imported.tensors[f"{HEAD}image.weight"]))
    recipe = dual_recipe(source, model, head, OFFICIAL_CLIP, path)
    return imported_checkpoint(source, recipe, imported, notes)


def _write(converted: Converted) -> WrittenCheckpoint:
    """Write a state dict that OpenAI's ``clip.model.build_model`` reads."""
    model, task = dual_encoder(converted)
    image, text = clip_towers(model, task, "OpenAI's CLIP")
    reject_any(
        "OpenAI's CLIP",
        {
            "exact GELU": (image.activation, text.activation) != ("quick_gelu", "quick_gelu"),
            "heads of other than 64 channels": bool(image.heads and image.heads * HEAD_WIDTH != image.width)
            or text.heads * HEAD_WIDTH != text.width,
            "other epsilon of LayerNorms than 1e-5": (image.layer_norm_eps, text.layer_norm_eps) != (1e-5, 1e-5),
            "feed-forward networks of other width than 4 times that of the states": (
                image.feed_forward not in (0, 4 * image.width) or text.feed_forward != 4 * text.width
            ),
        },
    )
    exported = export_tensors(converted.task.state_dict(), LAYOUT)
    numbers = (image.image_size[0], text.text_length, text.vocab_size)
    new = {name: torch.tensor(number) for name, number in zip(ARCHIVE, numbers, strict=True)}
    tensors = transpose_back(exported.tensors) | new
    report = export_report(converted, exported, new, ["the tokenizer is not part of the file"])
    return WrittenCheckpoint("clip.pt", tensors, report)


FORMAT = Format("OpenAI's CLIP", "openai", _recognize, _read, stores_clip, _write)
