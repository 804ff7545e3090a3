"""Recognises a checkpoint of somebody else, and gives it as a recipe and tensors under our names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualfuse.convert import hugging_face, official
from dualfuse.convert.hugging_face_config import read_config
from dualfuse.convert.official_config import recipe_of
from dualfuse.convert.rename import Sorted, sort
from dualfuse.convert.report import Report, shapes
from dualfuse.convert.tensor_files import find_weights, read_weights
from dualfuse.convert.tokenizer import ROBERTA, check_tokenizer, find_tokenizer
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.tasks.base import Task
from dualfuse.tasks.heads import Projection
from dualfuse.tasks.pairs import PairsConfig

FINE_TUNING = Optim(lr=1e-5, warmup=0.1, head_rate=5.0, fusing_rate=5.0)
BATCH, RUN = 64, Run(steps=2000)
"""What ``dualfuse train FOLDER`` starts with: BridgeTower's rates for retrieval, where a laptop can hold it."""

HEADS = ("projections.0.", "match_head.", "word_head.", "classifier.")
"""Prefixes of our tensors that a file may lack altogether."""


@dataclass(frozen=True)
class Foreign:
    """A checkpoint under our names, before a task is built of it."""

    recipe: Recipe
    tensors: dict[str, Tensor]
    kept: dict[str, Tensor]
    """Tensors without effect that only the way back needs."""
    report: Report


@dataclass(frozen=True)
class Converted:
    """A task with the weights of a checkpoint, and what became of each of them."""

    task: Task
    recipe: Recipe
    kept: dict[str, Tensor]
    report: Report


def read_foreign(path: Path, tokenizer: str = "") -> Foreign:
    """Gives what a Hugging Face folder of BridgeTower, or an official checkpoint of BridgeTower or METER, holds."""
    if path.is_dir():
        return _hugging_face(path, tokenizer)
    weights = read_weights(path)
    if official.is_official(weights.tensors):
        return _official(path, weights.tensors, weights.hyper_parameters, tokenizer)
    some = ", ".join(list(weights.tensors)[:4])
    raise ValueError(
        f"{path} holds tensors such as {some}, and is no official BridgeTower or METER. Weights of Hugging Face need "
        "their config.json: give the folder of both. For towers to start from, give CLIP, and RoBERTa with --text"
    )


def build(foreign: Foreign) -> Converted:
    """Builds the task and gives it the weights; heads that the file lacks are new, and the same every time.

    Raises ``ValueError`` if tensors are missing or of other shapes.
    """
    recipe = foreign.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        task = recipe.task.build(recipe.model.build())
    check_tokenizer(recipe.data.text, task.model.vocabulary)
    wanted, given = task.state_dict(), foreign.tensors
    new = [name for name in wanted if name not in given]
    missing = [name for name in new if not name.startswith(_may_lack(given))]
    if missing:
        raise ValueError(
            f"{foreign.report.source} lacks {len(missing)} tensors of the model, such as {', '.join(missing[:4])} "
            "(names of dualfuse): the file is not complete, or does not belong to its config.json"
        )
    left = {name: tensor for name, tensor in given.items() if name not in wanted}
    try:
        task.load_state_dict({name: tensor for name, tensor in given.items() if name in wanted}, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"the tensors of {foreign.report.source} do not have the shapes of its model: {error}"
        ) from error
    report = replace(foreign.report, new=shapes({name: wanted[name] for name in new}))
    report = replace(report, unexpected={**report.unexpected, **shapes(left)}, notes=(*report.notes, *_types(given)))
    return Converted(task.eval(), recipe, foreign.kept, report)


def _may_lack(given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Gives the prefixes of heads that a file does not have; a temperature alone, as official ones do, is no head."""
    weights = [name for name in given if name.endswith(".weight")]
    return tuple(head for head in HEADS if not any(name.startswith(head) for name in weights))


def _types(tensors: Mapping[str, Tensor]) -> list[str]:
    others = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} - {"float32"})
    return [f"{' and '.join(others)} became float32"] if others else []


def _hugging_face(folder: Path, tokenizer: str) -> Foreign:
    if not (folder / "config.json").is_file():
        inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
        raise ValueError(f"{folder} is no model folder: it holds {inside}, but should have a config.json")
    config = read_json(folder / "config.json")
    if config.get("model_type") != "bridgetower":
        raise ValueError(
            f"{folder} holds a {config.get('model_type', 'model without model_type')}; known are bridgetower, official "
            "checkpoints (.ckpt), and CLIP together with RoBERTa: --text ROBERTA"
        )
    beside = folder / "preprocessor_config.json"
    said = read_config(config, read_json(beside) if beside.is_file() else {})
    tensors = read_weights(find_weights(folder)).tensors
    prefix = hugging_face.PREFIX if any(name.startswith(hugging_face.PREFIX) for name in tensors) else ""
    found = sort(tensors, hugging_face.layout(said.model.bridge, prefix))
    notes = list(said.notes)
    if said.tie_words and any(name.startswith("word_head.") for name in found.tensors):
        found.tensors["word_head.decoder.weight"] = found.tensors["model.text_tower.words.word.weight"]
        notes.append("tie_word_embeddings: the decoder of masked words is a copy of the word embedding from here on")
    data = Data(
        image_size=said.image_size,
        looks=said.looks,
        text_length=said.text_length,
        tokenizer=find_tokenizer(tokenizer, folder, ROBERTA.get(said.model.text.width, ROBERTA[768])),
        batch=BATCH,
    )
    task = _pairs(found.tensors, said.contrast_width)
    recipe = Recipe(folder.name, said.model, task, data, FINE_TUNING, RUN)
    return Foreign(recipe, found.tensors, found.kept, _report(str(folder), found, notes))


def _pairs(tensors: Mapping[str, Tensor], width: int) -> PairsConfig:
    contrast = "projections.0.image.weight" in tensors
    return PairsConfig(
        contrast=float(contrast),
        match=float("match_head.weight" in tensors),
        words=float("word_head.dense.weight" in tensors),
        views="plain",
        projection=Projection(width, bias=True, fused=contrast),
        hardness=0.0,
        negatives_per_pair=1 if contrast else 0,
        masking="tokens",
    )


def _official(path: Path, tensors: Mapping[str, Tensor], said: Mapping[str, object], tokenizer: str) -> Foreign:
    if "vit_model.visual.conv1.weight" not in tensors:
        raise ValueError(
            f"the image tower of {path} is not CLIP's (METER also came with Swin); only CLIP is known here"
        )
    kind = official.kind_of(tensors)
    found = sort(tensors, kind.layout)
    ours = official.as_match_head(found.tensors) if kind.name == "ranking" else found.tensors
    recipe = recipe_of(ours, kind, said, path.stem)
    default = ROBERTA.get(tensors["text_transformer.embeddings.word_embeddings.weight"].shape[1], ROBERTA[768])
    data = replace(recipe.data, tokenizer=find_tokenizer(tokenizer, None, default), batch=BATCH)
    notes = (
        ["rank_output became the match head: its log-odds are the rank score"] if kind.name == "ranking" else []
    ) + ([] if said else ["no hyper-parameters in the file: heads of 64 channels, as published"])
    recipe = replace(recipe, data=data, optim=FINE_TUNING, run=RUN)
    return Foreign(recipe, ours, found.kept, _report(str(path), found, notes))


def _report(source: str, found: Sorted, notes: list[str]) -> Report:
    unused, unexpected = shapes(found.unused), shapes(found.unexpected)
    return Report(source, shapes(found.used), unused, unexpected, notes=tuple(notes))


def read_json(path: Path) -> dict[str, Any]:  # Any: what a file holds
    """Gives the object in a JSON file; ``ValueError`` for anything else."""
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds no JSON object")
    return said
