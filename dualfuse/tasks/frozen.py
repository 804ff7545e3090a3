"""The model of a folder without its task: what other tasks learn from, and never train."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dualfuse.config import from_json
from dualfuse.data.images import Looks

PREFIX = "model."  # of a model's tensors in the folder of a task


@dataclass(frozen=True)
class Frozen:
    """A model in evaluation mode whose weights are not trained, and how its pictures are normalised."""

    model: nn.Module
    looks: Looks


def frozen(folder: Path) -> Frozen:
    """Reads the model of a folder; ``ValueError`` if there is none, or if its weights are others."""
    try:
        recipe = json.loads((folder / "config.json").read_text())
        config, looks = from_json(recipe["model"]), from_json(recipe["data"]["looks"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{folder} is no model folder: its config.json names no model: {error}") from error
    with torch.random.fork_rng(devices=[]):  # the random weights are not kept
        model = config.build()
    tensors = read(folder / "model.safetensors")
    mine = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    try:
        model.load_state_dict(mine)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {error}") from error
    return Frozen(model.requires_grad_(False).eval(), looks)


def read(path: Path) -> dict[str, Tensor]:
    """Gives the tensors of a safetensors file; ``ValueError`` for anything else."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is missing, truncated or no safetensors file: {error}") from error
