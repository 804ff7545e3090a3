"""A model folder: weights, what builds them, and the tokenizer; and such folders on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dualfuse.config import from_json, to_json
from dualfuse.errors import DualfuseError
from dualfuse.io import atomic_folder, write_json
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.base import Processor, Task

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"

NO_ROOM = "What was there before is whole; make room and give the same command again"

MODELS = ("*.json", "merges.txt", "model*.safetensors", "unused.safetensors")
"""Files of a model on the hub; where weights are pickles, those too."""
TOKENIZERS = (TOKENIZER, "vocab.json", "merges.txt")
"""Files of a tokenizer on the hub."""


@dataclass(frozen=True)
class LoadedModel:
    """A task in evaluation mode, how its inputs are prepared, and the recipe that made it."""

    task: Task
    processor: Processor
    recipe: Recipe


def save(folder: Path, task: Task, recipe: Recipe, weights: Mapping[str, Tensor] | None = None) -> Path:
    """Write a model folder: a new one, or one that replaces ``folder`` as a whole.

    ``weights`` are those of a task that is shared out among processes, put together.
    """
    weights = task.state_dict() if weights is None else weights
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with atomic_folder(folder, state.values(), NO_ROOM) as partial:
        safetensors.torch.save_file(state, partial / WEIGHTS)
        recipe.data.text_transform.save(partial)
        write_json(partial / CONFIG, to_json(recipe))
    return folder


def load(folder: Path | str, *, device: torch.device | str = "cpu") -> LoadedModel:
    """Read a model folder that :func:`save` wrote."""
    folder = Path(folder)
    recipe, tensors = read_recipe(folder), read_tensors(folder)
    with _building_of(folder):
        outline = recipe.build_on_meta()  # a config may ask for more memory than there is
        processor = Processor(
            image=replace(recipe.data.image_transform, augment=None),
            text=with_tokenizer(recipe, folder).data.text_transform,
        )
    try:
        outline.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise DualfuseError(f"{folder / WEIGHTS} does not fit its own {CONFIG}: {error}") from error
    with _building_of(folder):
        task = recipe.build()
    task.load_state_dict(tensors)
    return LoadedModel(task.to(device).eval(), processor, recipe)


@contextmanager
def _building_of(folder: Path) -> Iterator[None]:
    """Turn whatever values of another type than a config says lead to into one sentence."""
    try:
        yield
    except Exception as error:
        raise DualfuseError(f"nothing can be built of {folder / CONFIG}: {error}") from error


def with_tokenizer(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with the tokenizer in ``folder``, wherever it had found its own."""
    return replace(recipe, data=replace(recipe.data, tokenizer=str(folder / TOKENIZER)))


def read_recipe(folder: Path) -> Recipe:
    """Return the recipe of a model folder; ``DualfuseError`` says what the folder is if it is none."""
    if not (folder / CONFIG).is_file():
        inside = sorted(path.name for path in folder.iterdir())[:10] if folder.is_dir() else []
        found = f"holds {', '.join(inside) or 'nothing'}" if folder.is_dir() else "is no folder"
        raise DualfuseError(f"{folder} is no model folder: it {found}, but should have a {CONFIG} (as OUT/final has)")
    try:
        recipe = from_json(json.loads((folder / CONFIG).read_text()))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: JSON that is nested too deeply
        raise DualfuseError(f"{folder / CONFIG} does not describe a recipe: {error}") from error
    if not (isinstance(recipe, Recipe) and isinstance(recipe.data, Data) and _builds(recipe.model, recipe.task)):
        raise DualfuseError(f"{folder / CONFIG} describes no recipe; was it written by another program?")
    return recipe


def _builds(*configs: object) -> bool:
    return all(callable(getattr(config, "build", None)) for config in configs)  # reason for getattr: any file


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a model folder by name; ``DualfuseError`` for a damaged file."""
    try:
        return safetensors.torch.load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise DualfuseError(f"{folder / WEIGHTS} is missing, truncated or no safetensors file: {error}") from error


def download(name: str, files: tuple[str, ...] = MODELS) -> Path:
    """Return the folder of a model on the Hugging Face hub, OWNER/NAME, or one file of it, OWNER/NAME/FILE.

    What was downloaded before is not fetched again, and is found without network too. Raises ``DualfuseError`` if the
    name is not found, and ``ImportError`` without the extra hub.
    """
    parts = name.split("/", 2)
    if not all(re.fullmatch(r"[\w.-]*\w[\w.-]*", part) for part in parts[:2]):
        raise DualfuseError(f"{name!r} is no path here, and no name on the Hugging Face hub, which are like OWNER/NAME")
    with _hub(f"{name!r} is no path here, and could not be fetched from the Hugging Face hub"):
        from huggingface_hub import hf_hub_download, snapshot_download

        if len(parts) == 3:
            return Path(hf_hub_download("/".join(parts[:2]), parts[2]))
        folder = Path(snapshot_download(name, allow_patterns=list(files)))
        if files == MODELS and not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*files, "pytorch_model*"]))
        return folder


def upload(folder: Path, name: str, *, private: bool = True) -> str:
    """Put a model folder on the Hugging Face hub as OWNER/NAME, and gives its address.

    The token is that of ``hf auth login`` or the variable HF_TOKEN. Raises ``DualfuseError`` if the hub refuses.
    """
    if not (folder / CONFIG).is_file() or not any(folder.glob("*.safetensors")):
        raise DualfuseError(f"{folder} is no model folder: it needs a {CONFIG} and weights, as OUT/final has")
    with _hub(f"{folder} could not be put on the Hugging Face hub as {name!r}"):
        from huggingface_hub import HfApi

        address = HfApi().create_repo(name, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="Model of dualfuse")
        return str(address)


@contextmanager
def _hub(failed: str) -> Iterator[None]:
    """Turn what goes wrong with the hub into one sentence."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f'{failed}: that needs huggingface_hub; pip install "dualfuse[hub]"') from error
    except Exception as error:  # its own, its HTTP client's, which changes with its versions, and the disk's
        raise DualfuseError(f"{failed}: {(str(error).splitlines() or [repr(error)])[0]}") from error
