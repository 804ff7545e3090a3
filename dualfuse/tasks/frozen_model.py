"""A frozen model that another task learns from: the teacher, or the visual tokenizer, of a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dualfuse import upgrade
from dualfuse.config import from_json
from dualfuse.data.image.transform import Preprocess
from dualfuse.errors import DualfuseError
from dualfuse.files import read_json
from dualfuse.tensor_files import read_weights

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
    try:
        stored = read_json(folder / "config.json")
        recipe: Any = upgrade.config(stored)  # Any: what a file holds
        config, preprocess = from_json(recipe["model"]), from_json(recipe["data"]["preprocess"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DualfuseError(f"{folder} is not a model folder: its config.json names no model: {error}") from error
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced
        model = config.build()
    tensors = read_weights(folder / "model.safetensors").tensors
    if recipe != stored:
        tensors = upgrade.tensors(tensors)
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise DualfuseError(f"the weights in {folder} do not fit its config.json: {error}") from error
    return FrozenModel(model.requires_grad_(False).eval().to(device), preprocess)
