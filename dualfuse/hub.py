"""A model folder: weights, what builds them, and the tokenizer; everything that using the model needs."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dualfuse.config import from_json, to_json
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.base import Prep, Task

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


@dataclass(frozen=True)
class Loaded:
    """A task in evaluation mode, how its inputs are prepared, and the recipe that made it."""

    task: Task
    prep: Prep
    recipe: Recipe


def save(folder: Path, task: Task, recipe: Recipe) -> Path:
    """Writes a model folder: a new one, or one that replaces ``folder`` as a whole."""
    partial, aside = (folder.with_name(folder.name + suffix) for suffix in (".partial", ".old.partial"))
    for left in (partial, aside):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in task.state_dict().items()}
    safetensors.torch.save_file(state, partial / WEIGHTS)
    recipe.data.text.save(partial)
    (partial / CONFIG).write_text(json.dumps(to_json(recipe), indent=1) + "\n")
    if folder.exists():  # renamed first: one that is removed by half must not look complete
        os.replace(folder, aside)
    os.replace(partial, folder)
    shutil.rmtree(aside, ignore_errors=True)
    return folder


def load(folder: Path | str, *, device: torch.device | str = "cpu") -> Loaded:
    """Reads a model folder that :func:`save` wrote."""
    folder = Path(folder)
    recipe = read_recipe(folder)
    task = recipe.task.build(recipe.model.build())
    try:
        task.load_state_dict(read_tensors(folder))
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit its own {CONFIG}: {error}") from error
    # the folder's own tokenizer, wherever the recipe had found it
    text = replace(recipe.data.text, tokenizer=str(folder / TOKENIZER))
    prep = Prep(image=replace(recipe.data.image, augment=None), text=text)
    return Loaded(task.to(device).eval(), prep, recipe)


def read_recipe(folder: Path) -> Recipe:
    """Gives the recipe of a model folder; ``ValueError`` says what the folder is if it is none."""
    if not (folder / CONFIG).is_file():
        inside = sorted(path.name for path in folder.iterdir())[:10] if folder.is_dir() else []
        found = f"holds {', '.join(inside) or 'nothing'}" if folder.is_dir() else "is no folder"
        raise ValueError(f"{folder} is no model folder: it {found}, but should have a {CONFIG} (as OUT/final has)")
    try:
        recipe = from_json(json.loads((folder / CONFIG).read_text()))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: JSON that is nested too deeply
        raise ValueError(f"{folder / CONFIG} does not describe a recipe: {error}") from error
    if not (isinstance(recipe, Recipe) and isinstance(recipe.data, Data) and _builds(recipe.model, recipe.task)):
        raise ValueError(f"{folder / CONFIG} describes no recipe; was it written by another program?")
    return recipe


def _builds(*configs: object) -> bool:
    return all(callable(getattr(config, "build", None)) for config in configs)  # reason for getattr: any file


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Gives the weights of a model folder by name; ``ValueError`` for a damaged file."""
    try:
        return safetensors.torch.load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} is missing, truncated or no safetensors file: {error}") from error
