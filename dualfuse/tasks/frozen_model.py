"""A frozen model that another task learns from: the teacher, or the visual tokenizer, of a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dualfuse import upgrade
from dualfuse.config import from_json
from dualfuse.data.image.transform import Preprocess
from dualfuse.data.processor import Processor
from dualfuse.errors import DualfuseError
from dualfuse.files import read_json
from dualfuse.tasks.base import Task
from dualfuse.tasks.encoder import Encoder
from dualfuse.tensor_files import read_weights

Module = TypeVar("Module", bound=nn.Module)
PREFIX = "model."  # of the model's tensors in a task's state dict


@dataclass(frozen=True)
class FrozenModel:
    """A model in evaluation mode without gradients, and the preprocessing of its images."""

    model: nn.Module
    preprocess: Preprocess


@lru_cache(maxsize=2)
def load_frozen(path: str, device: torch.device) -> FrozenModel:
    """Load the model of a folder; cached per process.

    Raises ``DualfuseError`` if there is none, or if its weights do not fit its config.
    """
    folder = Path(path).expanduser()
    stored, recipe = _config(folder)
    try:
        config, preprocess = from_json(recipe["model"]), from_json(recipe["data"]["preprocess"])
    except (ValueError, LookupError, TypeError) as error:
        raise DualfuseError(f"{folder} is not a model folder: its config.json names no model: {error}") from error
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced
        model = config.build()
    tensors = _tensors(folder, stored, recipe)
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    return FrozenModel(_frozen(model, weights, folder).to(device), preprocess)


@lru_cache(maxsize=2)
def load_encoder(path: str, device: torch.device) -> Encoder:
    """Load the model of a folder with its heads and the processor of its inputs; cached per process.

    Raises ``DualfuseError`` if there is none, or if its weights do not fit its config.
    """
    folder = Path(path).expanduser()
    stored, recipe = _config(folder)
    try:
        config, task, data = (from_json(recipe[name]) for name in ("model", "task", "data"))
        data = replace(data, augment=None, tokenizer=str(folder / "tokenizer.json"))
        processor = Processor(data.image_transform, data.text_transform)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DualfuseError(f"{folder} is not a model folder: its config.json names no model: {error}") from error
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced
        built: Task = task.build(config.build()).float()
    return Encoder(_frozen(built, _tensors(folder, stored, recipe), folder).to(device), processor)


def _config(folder: Path) -> tuple[Any, Any]:  # Any: what a file holds
    """Return the config of a model folder as it is, and under the names of this version."""
    try:
        stored = read_json(folder / "config.json")
        return stored, upgrade.config(stored)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DualfuseError(f"{folder} is not a model folder: its config.json names no model: {error}") from error


def _tensors(folder: Path, stored: Any, recipe: Any) -> Mapping[str, torch.Tensor]:  # Any: of _config
    tensors = read_weights(folder / "model.safetensors").tensors
    return tensors if recipe == stored else upgrade.tensors(tensors)


def _frozen(module: Module, weights: Mapping[str, torch.Tensor], folder: Path) -> Module:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise DualfuseError(f"the weights in {folder} do not fit its config.json: {error}") from error
    return module.requires_grad_(False).eval()
