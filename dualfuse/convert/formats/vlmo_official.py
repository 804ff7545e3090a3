"""Official VLMo checkpoints (microsoft/unilm, vlmo): files whose heads tell the stage or the task."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dualfuse.convert.checkpoint import (
    Converted,
    Format,
    Source,
    ThirdPartyCheckpoint,
    WrittenCheckpoint,
    export_report,
    reject_any,
    untrained_heads,
)
from dualfuse.convert.formats.beit import ATTENTION
from dualfuse.convert.formats.bridgetower import ITM, MLM
from dualfuse.convert.formats.vlmo_official_config import GRID_INDEX, Kind, recipe_of
from dualfuse.convert.rename import Layout, Table, add_prefixes, export_tensors, import_tensors, weight_and_bias
from dualfuse.convert.report import import_report
from dualfuse.convert.tokenizer import find_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.layers.relative_bias import joint_index
from dualfuse.models.vlmo import VL, VLMoConfig
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

FINE_TUNED: tuple[Kind, ...] = ("vqa", "nlvr2")
KINDS: Mapping[type[TaskConfig], Kind] = {
    MaskedTextConfig: "text",
    PairsConfig: "pairs",
    VQAConfig: "vqa",
    NLVR2Config: "nlvr2",
}

_BLOCK: Table = ATTENTION | weight_and_bias(
    {
        f"{module}_{name}{part}": f"experts.{expert}.{ours}"
        for name, expert in {"text": "text", "imag": "image", "vl": VL}.items()
        for module, part, ours in (("norm2", "", "norm"), ("mlp", ".fc1", "up"), ("mlp", ".fc2", "down"))
    }
)
WORD_POSITIONS = "text_embeddings.position_embeddings.weight"
MODEL: Table = (
    {
        "text_embeddings.word_embeddings.weight": "model.words.word.weight",
        "text_embeddings.token_type_embeddings.weight": "model.words.token_type.weight",
        WORD_POSITIONS: "model.words.position.weight",
        "token_type_embeddings.weight": "model.types.weight",
        "relative_position_bias_table": "model.relative_bias.table",
        "transformer.cls_token": "model.patches.class_token",
        "transformer.pos_embed": "model.patches.position",
    }
    | weight_and_bias(
        {
            "text_embeddings.LayerNorm": "model.words.norm",
            "transformer.patch_embed.proj": "model.patches.projection",
            "transformer.norm": "model.norm",
            "pooler.dense": "model.pooler",
        }
    )
    | add_prefixes(_BLOCK, "transformer.blocks.{}.", "model.blocks.{}.")
)
"""Everything but the heads."""
PAIRS: Table = (
    MODEL
    | MLM
    | ITM
    | {
        "itc_image_proj.fc.weight": "itc_heads.0.image.weight",
        "itc_text_proj.fc.weight": "itc_heads.0.text.weight",
        "itc_vl_image_proj.fc.weight": "itc_heads.1.image.weight",
        "itc_vl_text_proj.fc.weight": "itc_heads.1.text.weight",
        "logit_scale": "itc_heads.0.logit_scale",
        "logit_vl_scale": "itc_heads.1.logit_scale",
    }
)
INDICES = (GRID_INDEX, "text_relative_position_index", "text_imag_relative_position_index")
"""Rows of the bias table for images, texts and pairs; the official loader reads them to change the resolution."""
_KEPT: Table = {"text_embeddings.position_ids": "position_numbers"} | {name: name for name in INDICES}
_SCALARS = ("logit_scale", "logit_vl_scale")
_EARLIER_HEADS = ("mlm_score.*", "itm_score.*", "itc_*", *_SCALARS)


def kind_of(names: Collection[str]) -> Kind:
    """Return the kind of a checkpoint with these tensors; ``DualfuseError`` if it has heads of several tasks."""
    kinds: list[Kind] = [kind for kind in FINE_TUNED if any(name.startswith(f"{kind}_classifier.") for name in names)]
    if len(kinds) > 1:
        heads = " and ".join(f"{kind}_classifier" for kind in kinds)
        raise DualfuseError(f"this checkpoint has {heads}; a published one has a single task, so remove the others")
    if kinds:
        return kinds[0]
    heads = {name.partition(".")[0] for name in names}
    return "text" if "mlm_score" in heads and not heads & {"itm_score", "itc_image_proj"} else "pairs"


def layout(kind: Kind, *, relative: bool) -> Layout:
    """Return the names in a checkpoint of a kind.

    With relative positions the absolute word positions are stored too, but are not part of the official forward pass.
    """
    is_fine_tuned = kind in FINE_TUNED
    classifier = {f"{kind}_classifier.{index}": f"classifier.{index}" for index in (0, 1, 3)}
    names = MODEL | weight_and_bias(classifier) if is_fine_tuned else dict(PAIRS)
    kept = dict(_KEPT)
    if relative:
        kept[WORD_POSITIONS] = "word_positions"
        del names[WORD_POSITIONS]
    return Layout(names, kept, _EARLIER_HEADS if is_fine_tuned else (), scalars=_SCALARS)


def _recognize(source: Source) -> bool:
    names = [] if source.path.is_dir() else source.tensors
    return any(name.startswith("transformer.blocks.") and ".mlp_imag." in name for name in names)


def _read(source: Source, tokenizer: str) -> ThirdPartyCheckpoint:
    """Read a checkpoint; its tokens are BERT's unless a tokenizer is given."""
    kind = kind_of(source.tensors)
    imported = import_tensors(source.tensors, layout(kind, relative="relative_position_bias_table" in source.tensors))
    recipe = recipe_of(imported.tensors, imported.kept, kind, source.weights.hyper_parameters, source.path.stem)
    path = find_tokenizer(tokenizer)
    recipe = replace(recipe, data=replace(recipe.data, tokenizer=path))
    return ThirdPartyCheckpoint(recipe, imported.tensors, imported.kept, import_report(str(source.path), imported, []))


def _stores(recipe: Recipe) -> bool:
    return isinstance(recipe.model, VLMoConfig) and type(recipe.task) in KINDS


def _write(converted: Converted) -> WrittenCheckpoint:
    """Write a Lightning checkpoint for the official loader; heads that were not trained are dropped."""
    model, task, data = converted.recipe.model, converted.recipe.task, converted.recipe.data
    assert isinstance(model, VLMoConfig)  # _stores
    _check(model, task)
    new = {} if converted.kept else _buffers(model, data.text_length)
    target = replace(layout(KINDS[type(task)], relative=model.positions == "relative"), dropped=untrained_heads(task))
    exported = export_tensors(converted.task.state_dict(), target, converted.kept or new)
    hyper_parameters = {
        "num_heads": model.heads,
        "image_size": model.image_size[0] if len(set(model.image_size)) == 1 else list(model.image_size),
        "max_text_len": data.text_length,
        "max_text_len_of_initckpt": model.text_length,
        "drop_path_rate": model.drop_path,
    }
    report = export_report(converted, exported, new)
    return WrittenCheckpoint(
        "vlmo.ckpt", exported.tensors, report, "state_dict", {"hyper_parameters": {"config": hyper_parameters}}
    )


def _check(model: VLMoConfig, task: TaskConfig) -> None:
    is_square = model.image_size[0] == model.image_size[1]
    obstacles = {
        "experts that all modalities share": model.experts == "shared",
        "layers with an attention of each modality": model.separate_attention_until > 0,
        "convolutional stem": model.stem != "linear",
        "mean bias for all layers": model.share_relative_bias,
        "relative positions of images that are not square": model.positions == "relative" and not is_square,
    }
    if isinstance(task, PairsConfig):
        head = task.itc_head
        obstacles |= {
            "ITC projections with biases": head.bias,
            "plain temperature": head.temperature != "log",
            "ITC with fused embeddings": head.fused,
            f"ITC projections to a width of {head.width}": head.width not in (0, model.width),
        }
    reject_any("the official VLMo", obstacles)


def _buffers(model: VLMoConfig, text: int) -> dict[str, Tensor]:
    """Return the untrained buffers that published files hold and the official loader reads."""
    if model.positions == "absolute":
        return {"position_numbers": torch.arange(model.text_length)[None]}
    grid = (model.image_size[0] // model.patch_size, model.image_size[1] // model.patch_size)
    modes = ((0, grid), (text, ()), (text, grid))
    return {
        "position_numbers": torch.arange(text)[None],
        "word_positions": torch.zeros(text, model.width),
        **{
            name: joint_index(length, images, grid, model.text_length).clone()
            for name, (length, images) in zip(INDICES, modes, strict=True)
        },
    }


FORMAT = Format("official VLMo", "official", _recognize, _read, _stores, _write)
