"""The model of a folder without its task: what other tasks learn from, and never train."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dualfuse import upgrade
from dualfuse.config import from_json
from dualfuse.data.image.transform import Preprocess
from dualfuse.errors import DualfuseError

PREFIX = "model."  # of a model's tensors in the folder of a task


@dataclass(frozen=True)
class FrozenModel:
    """A model in evaluation mode whose weights are not trained, and how its images are normalised."""

    model: nn.Module
    preprocess: Preprocess


def load_frozen(folder: Path) -> FrozenModel:
    """Read the model of a folder; ``DualfuseError`` if there is none, or if its weights are others."""
    try:
        stored = json.loads((folder / "config.json").read_text())
        recipe = upgrade.config(stored)
        config, preprocess = from_json(recipe["model"]), from_json(recipe["data"]["preprocess"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DualfuseError(f"{folder} is no model folder: its config.json names no model: {error}") from error
    with torch.random.fork_rng(devices=[]):  # the random weights are not kept
        model = config.build()
    tensors = read(folder / "model.safetensors")
    if recipe != stored:
        tensors = upgrade.tensors(tensors)
    mine = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    try:
        model.load_state_dict(mine)
    except RuntimeError as error:
        raise DualfuseError(f"the weights in {folder} do not fit its config.json: {error}") from error
    return FrozenModel(model.requires_grad_(False).eval(), preprocess)


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; ``DualfuseError`` for anything else."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise DualfuseError(f"{path} is missing, truncated or no safetensors file: {error}") from error
