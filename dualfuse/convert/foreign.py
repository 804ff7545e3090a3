"""Recognises a checkpoint of somebody else, and gives it as a recipe and tensors under our names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dualfuse.convert import beit, hugging_face, official, vlmo
from dualfuse.convert.build import ThirdPartyCheckpoint, report_of
from dualfuse.convert.hugging_face_config import read_config
from dualfuse.convert.official_config import recipe_of
from dualfuse.convert.rename import sort
from dualfuse.convert.tensor_files import find_weights, read_json, read_weights
from dualfuse.convert.tokenizer import ROBERTA, find_tokenizer
from dualfuse.convert.vlmo_files import read_beit, read_vlmo, says_beit
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.tasks.pretrain.pairs import PairsConfig

FINE_TUNING = Optim(lr=1e-5, warmup=0.1, head_lr_mult=5.0, fusion_lr_mult=5.0)
BATCH, RUN = 64, Run(steps=2000)
"""What ``dualfuse train FOLDER`` starts with: BridgeTower's rates for retrieval, where a laptop can hold it."""


def read_checkpoint(path: Path, tokenizer: str = "") -> ThirdPartyCheckpoint:
    """Return what a folder of Hugging Face (BridgeTower, BEiT) or a file (VLMo, BEiT, BridgeTower, METER) holds."""
    try:
        return _folder(path, tokenizer) if path.is_dir() else _file(path, tokenizer)
    except (DualfuseError, OSError):  # these say what is wrong
        raise
    except Exception as error:  # a file may say what nobody would
        said = f"{type(error).__name__}: {error}"
        raise DualfuseError(f"{path} looks like a checkpoint that is known, but is damaged ({said})") from error


def _file(path: Path, tokenizer: str) -> ThirdPartyCheckpoint:
    weights = read_weights(path)
    if official.is_official(weights.tensors):
        return _official(path, weights.tensors, weights.hyper_parameters, tokenizer)
    if vlmo.is_official(weights.tensors):
        return read_vlmo(path, weights, tokenizer)
    if beit.is_beit(weights.tensors):
        return read_beit(path, weights.tensors, tokenizer)
    some = ", ".join(list(weights.tensors)[:4])
    raise DualfuseError(
        f"{path} holds tensors such as {some}, and is no official BridgeTower or METER, no VLMo and no BEiT. Weights "
        "of Hugging Face need their config.json: give the folder of both. For towers to start from, give CLIP, and "
        "RoBERTa with --text"
    )


def _folder(folder: Path, tokenizer: str) -> ThirdPartyCheckpoint:
    if not (folder / "config.json").is_file():
        inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
        raise DualfuseError(f"{folder} is no model folder: it holds {inside}, but should have a config.json")
    config = read_json(folder / "config.json")
    if says_beit(config):
        return read_beit(folder, read_weights(find_weights(folder)).tensors, tokenizer, config)
    if config.get("model_type") == "bridgetower":
        return _hugging_face(folder, config, tokenizer)
    raise DualfuseError(
        f"{folder} holds a {config.get('model_type', 'model without model_type')}; known are bridgetower, beit, "
        "official checkpoints (.ckpt), and CLIP together with RoBERTa: --text ROBERTA"
    )


def _hugging_face(
    folder: Path, config: Mapping[str, Any], tokenizer: str
) -> ThirdPartyCheckpoint:  # Any: whatever JSON holds
    beside = folder / "preprocessor_config.json"
    said = read_config(config, read_json(beside) if beside.is_file() else {})
    tensors = read_weights(find_weights(folder)).tensors
    prefix = hugging_face.PREFIX if any(name.startswith(hugging_face.PREFIX) for name in tensors) else ""
    found = sort(tensors, hugging_face.layout(said.model.bridge, prefix))
    notes = list(said.notes)
    if said.tie_words and any(name.startswith("mlm_head.") for name in found.tensors):
        found.tensors["mlm_head.decoder.weight"] = found.tensors["model.text_tower.words.word.weight"]
        notes.append("tie_word_embeddings: the decoder of masked words is a copy of the word embedding from here on")
    data = Data(
        image_size=said.image_size,
        preprocess=said.preprocess,
        text_length=said.text_length,
        tokenizer=find_tokenizer(tokenizer, folder, ROBERTA.get(said.model.text.width, ROBERTA[768])),
        batch_size=BATCH,
    )
    task = _pairs(found.tensors, said.itc_width)
    recipe = Recipe(folder.name, said.model, task, data, FINE_TUNING, RUN)
    return ThirdPartyCheckpoint(recipe, found.tensors, found.kept, report_of(str(folder), found, notes))


def _pairs(tensors: Mapping[str, Tensor], width: int) -> PairsConfig:
    contrast = "itc_heads.0.image.weight" in tensors
    return PairsConfig(
        itc_weight=float(contrast),
        itm_weight=float("itm_head.weight" in tensors),
        mlm_weight=float("mlm_head.dense.weight" in tensors),
        itc_features="unimodal",
        itc_head=ITCHeadConfig(width, bias=True, fused=contrast),
        negative_hardness=0.0,
        negatives_per_pair=1 if contrast else 0,
        masking="token",
    )


def _official(
    path: Path, tensors: Mapping[str, Tensor], said: Mapping[str, object], tokenizer: str
) -> ThirdPartyCheckpoint:
    if "vit_model.visual.conv1.weight" not in tensors:
        raise DualfuseError(
            f"the image tower of {path} is not CLIP's (METER also came with Swin); only CLIP is known here"
        )
    kind = official.kind_of(tensors)
    found = sort(tensors, kind.layout)
    ours = official.as_match_head(found.tensors) if kind.name == "ranking" else found.tensors
    recipe = recipe_of(ours, kind, said, path.stem)
    default = ROBERTA.get(tensors["text_transformer.embeddings.word_embeddings.weight"].shape[1], ROBERTA[768])
    data = replace(recipe.data, tokenizer=find_tokenizer(tokenizer, None, default), batch_size=BATCH)
    notes = (
        ["rank_output became the match head: its log-odds are the rank score"] if kind.name == "ranking" else []
    ) + ([] if said else ["no hyper-parameters in the file: heads of 64 channels, as published"])
    recipe = replace(recipe, data=data, optim=FINE_TUNING, run=RUN)
    return ThirdPartyCheckpoint(recipe, ours, found.kept, report_of(str(path), found, notes))
