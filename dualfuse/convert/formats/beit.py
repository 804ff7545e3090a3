"""BEiT (arXiv 2106.08254) in the layouts of microsoft/unilm, timm and Hugging Face: what VLMo starts from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from dualfuse.convert import shapes as sizes
from dualfuse.convert.checkpoint import Converted, Format, Source, ThirdPartyCheckpoint, WrittenCheckpoint, reject_any
from dualfuse.convert.formats.beit_config import SHARED_TABLE, TABLE_OF_LAYER, TEXT_LENGTH, recipe_of
from dualfuse.convert.formats.clip import concatenate_qkv
from dualfuse.convert.rename import Layout, Table, add_prefixes, export_tensors, import_tensors, weight_and_bias
from dualfuse.convert.report import Report, import_report, shapes
from dualfuse.convert.tokenizer import find_tokenizer
from dualfuse.errors import DualfuseError
from dualfuse.layers.relative_bias import image_index, num_image_rows
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Recipe
from dualfuse.tasks.finetune.image_classification import ImageClassification, ImageClassificationConfig

ATTENTION: Table = {
    "attn.qkv.weight": "attention.shared.qkv.weight",
    "attn.q_bias": "attention.shared.q_bias",
    "attn.v_bias": "attention.shared.v_bias",
    "gamma_1": "scale_1.weight",
    "gamma_2": "scale_2.weight",
} | weight_and_bias({"norm1": "norm", "attn.proj": "attention.shared.projection"})
"""A block without experts, which VLMo's files name like BEiT's."""
_EXPERT = {"norm2": "experts.image.norm", "mlp.fc1": "experts.image.up", "mlp.fc2": "experts.image.down"}
_NAMES: Table = (
    {
        "cls_token": "model.patches.class_token",
        "pos_embed": "model.patches.position",
        "mask_token": "mask_token",
        "rel_pos_bias.relative_position_bias_table": SHARED_TABLE,
        "blocks.{}.attn.relative_position_bias_table": TABLE_OF_LAYER,
    }
    | weight_and_bias({"patch_embed.proj": "model.patches.projection", "norm": "model.norm", "lm_head": "head"})
    | add_prefixes(ATTENTION | weight_and_bias(_EXPERT), "blocks.{}.", "model.blocks.{}.")
)
_CLASSIFIER = weight_and_bias({"fc_norm": "norm", "head": "head"})

_HUGGING_FACE_LAYER = {
    "attention.attention.qkv.weight": "attn.qkv.weight",  # after fuse_qkv
    "attention.attention.query.bias": "attn.q_bias",
    "attention.attention.value.bias": "attn.v_bias",
    "attention.attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
    "lambda_1": "gamma_1",
    "lambda_2": "gamma_2",
} | weight_and_bias(
    {
        "layernorm_before": "norm1",
        "attention.output.dense": "attn.proj",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
)
_HUGGING_FACE = (
    {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.mask_token": "mask_token",
        "encoder.relative_position_bias.relative_position_bias_table": "rel_pos_bias.relative_position_bias_table",
    }
    | weight_and_bias({"embeddings.patch_embeddings.projection": "patch_embed.proj"})
    | add_prefixes(_HUGGING_FACE_LAYER, "encoder.layer.{}.", "blocks.{}.")
)
_HUGGING_FACE_HEADS = weight_and_bias({"layernorm": "norm", "lm_head": "lm_head"})
PREFIX = "beit."
"""Prefix of all but the heads, in Hugging Face's files of models with heads; the bare BeitModel has none."""

EPSILON = 1e-6
"""Epsilon of BEiT's norms; Hugging Face's folders have 1e-12."""
NEW_EXPERTS = "language experts are new, as in the official code; vision-language experts are for stage three"
"""A note that is removed when the language experts get other initial values."""
MAY_BE_NEW = (
    "model.words.*",
    "model.pooler.*",
    "model.norm.*",
    "model.blocks.*.experts.text.*",
    "mlm_head.*",
    "head.*",
)
"""Tensors of a VLMo that BEiT, or some BEiTs, do not have."""
TABLE, TYPES = "model.relative_bias.table", "model.types.weight"
CLASS_TOKEN, PATCH_BIAS = "model.patches.class_token", "model.patches.projection.bias"
INDEX = "blocks.{}.attn.relative_position_index"


def official_layout(names: Collection[str]) -> Layout:
    """Return the names in a file of microsoft/unilm, or of timm, which lacks the indices."""
    classifier = _CLASSIFIER if "head.weight" in names else {}
    unused = ("*relative_position_index", "blocks.*.attn.k_bias", "fc_norm.*", "head.*", "fpn*")
    return Layout(_NAMES | classifier, unused=unused)


def hugging_face_layout(prefix: str, names: Collection[str]) -> Layout:
    """Return the names in a file of transformers, after :func:`fuse_qkv`."""
    official = add_prefixes(_HUGGING_FACE, prefix, "") | _HUGGING_FACE_HEADS
    table = {name: _NAMES[official_name] for name, official_name in official.items()}
    if "classifier.weight" in names:
        norms = {f"{prefix}layernorm": "model.norm", f"{prefix}pooler.layernorm": "norm"}
        table |= weight_and_bias(norms | {"classifier": "head"})
    heads = ("classifier.*", "decode_head.*", "auxiliary_head.*", "fpn*")
    return Layout(table, unused=("*relative_position_index", f"{prefix}pooler.*", *heads))


def fuse_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate Hugging Face's query, key and value weights to ...attention.qkv.weight, in this order."""
    pattern = r"(.*\.attention\.attention\.)({})(\.weight)"
    return concatenate_qkv(tensors, pattern, ("query", "key", "value"), "BEiT")


def to_vlmo(tensors: Mapping[str, Tensor], text_length: int) -> dict[str, Tensor]:
    """Replace BEiT's bias tables by the single one of VLMo, for texts of up to ``text_length`` tokens, and add types.

    The tables of the layers become its columns; one that all layers share is repeated. The rows for text, and the type
    embeddings of text and image, are zero, so that images are encoded exactly as by BEiT.
    """
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("bias.")}
    types = torch.zeros(2, tensors[CLASS_TOKEN].shape[-1])
    if tables := _tables(tensors, sizes.count(tensors, "model.blocks.")):
        text_rows = torch.zeros(2 * text_length + 2, sum(table.shape[1] for table in tables), dtype=tables[0].dtype)
        rest[TABLE] = torch.cat([torch.cat(tables, dim=1), text_rows])
    return rest | {TYPES: types}


def _tables(tensors: Mapping[str, Tensor], depth: int) -> list[Tensor]:
    """Return the bias tables of all layers; none with absolute positions."""
    if SHARED_TABLE in tensors:
        return [tensors[SHARED_TABLE]] * depth
    names = [TABLE_OF_LAYER.format(layer) for layer in range(depth)]
    tables = [tensors[name] for name in names if name in tensors]
    if tables and len(tables) < depth:
        missing = next(layer for layer, name in enumerate(names) if name not in tensors)
        raise DualfuseError(f"layer {missing} of this BEiT has no relative_position_bias_table, but others have")
    return tables


def recognize(source: Source) -> bool:
    """Whether a folder is a BEiT of Hugging Face or timm, or a file one of the official code or timm."""
    if source.path.is_dir():
        config = source.config
        return config.get("model_type") == "beit" or str(config.get("architecture", "")).startswith("beit")
    marks = {"cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.q_bias"}
    return marks <= source.tensors.keys()


def read(source: Source, tokenizer: str) -> ThirdPartyCheckpoint:
    """Read a BEiT as a VLMo, whose parts for text are new."""
    config, tensors = source.config, source.tensors
    notes = ["the type embeddings of text and image are zero, so that images are encoded exactly as by BEiT"]
    if config.get("model_type") == "beit":
        prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
        imported = import_tensors(fuse_qkv(tensors), hugging_face_layout(prefix, tensors.keys()))
        notes += _config_notes(config)
    else:  # timm uses the names of the official code
        imported = import_tensors(tensors, official_layout(tensors.keys()))
    heads = config.get("num_attention_heads", 0) if config.get("model_type") == "beit" else 0
    path = find_tokenizer(tokenizer)
    recipe = recipe_of(imported.tensors, source.path.stem, tokenizer=path, heads=heads)
    if SHARED_TABLE in imported.tensors:
        notes.append("the bias table that all layers share was copied to each layer")
    if "model.norm.weight" not in imported.tensors:
        notes.append("there is no norm after the last layer: it is new")
    notes.append(NEW_EXPERTS)
    report = import_report(str(source.path), imported, notes)
    return ThirdPartyCheckpoint(recipe, to_vlmo(imported.tensors, TEXT_LENGTH), {}, report, MAY_BE_NEW)


def _config_notes(config: Mapping[str, Any]) -> list[str]:
    if config.get("hidden_act", "gelu") != "gelu":
        raise DualfuseError(f"this BEiT has the activation {config['hidden_act']}; only gelu is supported")
    epsilon = config.get("layer_norm_eps", 1e-12)
    return [] if epsilon == EPSILON else [f"epsilon of the norms was {epsilon}; here it is {EPSILON} as in BEiT's code"]


def _stores(recipe: Recipe) -> bool:
    return isinstance(recipe.model, VLMoConfig) and isinstance(recipe.task, ImageClassificationConfig)


def _write(converted: Converted) -> WrittenCheckpoint:
    """Write a file of microsoft/unilm; everything for text is dropped.

    The type embedding of images is added to class token and patches; where it is zero, as in a BEiT that was converted,
    everything else stays bit-identical.
    """
    model, task = converted.recipe.model, converted.task
    assert isinstance(model, VLMoConfig) and isinstance(task, ImageClassification)  # _stores
    reject_any(
        "the official BEiT",
        {
            "experts that all modalities share": model.experts == "shared",
            "layers with an attention of each modality": model.separate_attention_until > 0,
            "convolutional stem": model.stem != "linear",
            "mean bias for all layers": model.share_relative_bias,
            "images that are not square": model.image_size[0] != model.image_size[1],
        },
    )
    tensors = task.state_dict()
    dropped = ("model.words.*", "model.pooler.*", "model.blocks.*.experts.text.*", "model.blocks.*.experts.vl.*")
    if task.features == "patches":  # the mean of patches without the model's norm
        dropped = (*dropped, "model.norm.*")
    names = {left: right for left, right in _NAMES.items() if not left.startswith(("lm_head.", "mask_token"))}
    layout = Layout(names | _CLASSIFIER, dropped=dropped)
    folded = {name: tensor for name, tensor in tensors.items() if name in (TYPES, TABLE)}
    stored = {name: tensor for name, tensor in tensors.items() if name not in folded}
    if (image_type := tensors[TYPES][1]).any():
        stored |= {name: tensors[name] + image_type for name in (CLASS_TOKEN, PATCH_BIAS)}
    grid = (model.image_size[0] // model.patch_size, model.image_size[1] // model.patch_size)
    new = {}
    if TABLE in tensors:
        tables = tensors[TABLE][: num_image_rows(grid)].chunk(model.depth, dim=1)
        stored |= {TABLE_OF_LAYER.format(layer): table.clone() for layer, table in enumerate(tables)}
        new = {INDEX.format(layer): image_index(grid).clone() for layer in range(model.depth)}
    exported = export_tensors(stored, layout)
    used = {name: tensor for name, tensor in tensors.items() if name not in exported.dropped}
    report = Report(converted.report.source, used=shapes(used), new=shapes(new), dropped=shapes(exported.dropped))
    return WrittenCheckpoint("beit.pth", exported.tensors | new, report, "model")


FORMAT = Format("BEiT", "official", recognize, read, _stores, _write)
