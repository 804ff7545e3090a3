"""Model folders: weights, recipe and tokenizer; and model folders on the Hugging Face hub."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from dualfuse import checksums, upgrade
from dualfuse.config import JSON, from_json, third_party, to_json
from dualfuse.data.processor import Processor
from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.evaluation.notes import read_notes
from dualfuse.files import check_regular, read_json, read_json_object
from dualfuse.io import atomic_folder, listing, write_json
from dualfuse.layers.lora import add_lora, merge_lora
from dualfuse.models.base import VisionLanguageModel
from dualfuse.provenance import FILE as PROVENANCE
from dualfuse.provenance import provenance
from dualfuse.recipe import Data, Recipe, Run
from dualfuse.run_folder import RECIPE, is_checkpoint, read_weights, run_of
from dualfuse.tasks.base import Task
from dualfuse.tasks.encoder import Encoder
from dualfuse.tensor_files import load_tensors, save_tensors

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
ORIGINS = "origins.json"
"""Licence and origin of the weights that a model started from, by their name."""
PLUGINS = "plugins"
"""The key of a recipe's JSON that names the third-party packages whose classes it uses."""

NO_SPACE = "The earlier model folder is complete; free some space and give the same command again"

MODELS = ("*.json", "merges.txt", "spiece.model", "model*.safetensors", "unused.safetensors")
"""Files of a model on the hub; where its weights are pickles, those too."""
TOKENIZERS = (TOKENIZER, "vocab.json", "merges.txt", "spiece.model")
"""Files of a tokenizer on the hub."""


@dataclass(frozen=True)
class LoadedModel(Encoder):
    """A task in evaluation mode, the processor of its inputs, and the recipe that it was trained with.

    The methods of :class:`~dualfuse.tasks.encoder.Encoder` embed, compare, match and predict.
    """

    recipe: Recipe


def save(
    folder: Path,
    task: Task,
    recipe: Recipe,
    weights: Mapping[str, Tensor] | None = None,
    notes: Mapping[str, JSON] | None = None,
    write_more: Callable[[Path], object] | None = None,
) -> Path:
    """Write a model folder, replacing an existing ``folder`` as a whole, and return its path.

    ``weights`` are the gathered weights of a sharded task; None: those of ``task``. ``notes`` are written as JSON
    files, by name; provenance.json says by which code, command and machine the folder was made, in addition to a note
    of that name. ``write_more`` writes
    further files, such as a model card, into the folder that it is called with before that becomes ``folder``.
    """
    weights = task.state_dict() if weights is None else weights
    with atomic_folder(folder, weights.values(), NO_SPACE) as partial:
        save_tensors(weights, partial / WEIGHTS)
        recipe.data.text_transform.save(partial)
        config, notes = recipe_to_json(recipe), notes or {}
        made: JSON = {**provenance(config), **_object(notes.get(PROVENANCE))}
        for name, note in {**notes, CONFIG: config, PROVENANCE: made}.items():
            write_json(partial / name, note)
        if write_more:
            write_more(partial)
        checksums.write_checksums(partial)
    return folder


def _object(value: JSON) -> dict[str, JSON]:
    return value if isinstance(value, dict) else {}


def read_origins(folder: Path) -> dict[str, str]:
    """Return the licence and origin of the weights that a model started from, by their name; empty if unknown."""
    content = read_json_object(folder / ORIGINS) if (folder / ORIGINS).is_file() else {}
    return {name: text for name, text in content.items() if isinstance(text, str)}


def load(folder: Path | str, *, device: torch.device | str = "cpu") -> LoadedModel:
    """Load a model folder that :func:`save` wrote, with this or an earlier version, or a checkpoint of a run.

    Raises ``DualfuseError`` if the folder is damaged or is not a model folder, if a file is not the one that was saved,
    and if weights are not finite.
    """
    folder = Path(folder)
    recipe, tensors = read_recipe(folder), read_tensors(folder)
    with _building_from(folder):
        outline = recipe.build_on_meta()  # a config may ask for more memory than there is
        processor = Processor(
            image=replace(recipe.data.image_transform, augment=None),
            text=with_tokenizer(recipe, folder).data.text_transform,
        )
    try:
        outline.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise DualfuseError(f"{folder / WEIGHTS} does not fit its own {recipe_path(folder).name}: {error}") from error
    with _building_from(folder), torch.random.fork_rng(devices=[]):  # the random weights are replaced
        task = recipe.build()
    task.load_state_dict(tensors)
    read_notes(task, folder)
    verify(folder, CONFIG, TOKENIZER)
    return LoadedModel(task.to(device).eval(), processor, recipe)


@contextmanager
def _building_from(folder: Path) -> Iterator[None]:
    """Turn any exception, such as that of a value of the wrong type, into a ``DualfuseError`` that names the file."""
    try:
        yield
    except Exception as error:
        raise DualfuseError(f"nothing can be built from {recipe_path(folder)}: {error}") from error


def with_tokenizer(recipe: Recipe, folder: Path) -> Recipe:
    """Return ``recipe`` with the tokenizer of ``folder`` in place of its own; that of a checkpoint is in its run."""
    if is_checkpoint(folder):
        folder = run_of(folder)
        if not (folder / TOKENIZER).is_file():  # a run of an earlier version
            return recipe
    return replace(recipe, data=replace(recipe.data, tokenizer=str(folder / TOKENIZER)))


def recipe_path(folder: Path) -> Path:
    """Return the file with the recipe of a model folder, or of a checkpoint."""
    return run_of(folder) / RECIPE if is_checkpoint(folder) else folder / CONFIG


def recipe_to_json(recipe: Recipe) -> dict[str, JSON]:
    """Return a recipe as JSON values; they name the plug-ins that define its classes, if there are any."""
    data = to_json(recipe)
    assert isinstance(data, dict)
    if plugins := third_party(data):
        data[PLUGINS] = list(plugins)
    return data


def recipe_from_file(path: Path) -> Recipe:
    """Read a file that holds :func:`recipe_to_json`; raises ``DualfuseError`` for any other."""
    try:
        return recipe_from_json(read_json(path))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: values that are nested too deeply
        raise DualfuseError(f"{path} does not describe a recipe: {error}") from error


def recipe_from_json(data: JSON) -> Recipe:
    """Return the recipe that :func:`recipe_to_json` was given; raises ``DualfuseError`` for other values."""
    recipe = from_json({key: data[key] for key in data if key != PLUGINS} if isinstance(data, dict) else data)
    if not (isinstance(recipe, Recipe) and _is_complete(recipe)):
        raise DualfuseError("it is not a whole recipe; was it written by another program?")
    return recipe


def read_recipe(folder: Path) -> Recipe:
    """Return the recipe of a model folder or checkpoint; raises ``DualfuseError`` with the files of another folder."""
    if not recipe_path(folder).is_file():
        inside = sorted(path.name for path in folder.iterdir())[:10] if folder.is_dir() else []
        contents = f"it holds {', '.join(inside) or 'nothing'}" if folder.is_dir() else "it is not a folder"
        raise DualfuseError(f"{folder} is not a model folder: {contents}, but needs a {CONFIG} (as OUT/final has)")
    return recipe_from_file(recipe_path(folder))


def _is_complete(recipe: Recipe) -> bool:
    """Return whether the parts of a recipe are of the right types, which a file need not respect."""
    can_build = (callable(getattr(part, "build", None)) for part in (recipe.model, recipe.task))
    return isinstance(recipe.data, Data) and isinstance(recipe.run, Run) and all(can_build)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a model folder or a checkpoint by name.

    Raises ``DualfuseError`` for a damaged file, and names the tensors that are not finite.
    """
    tensors = _read_checkpoint(folder) if is_checkpoint(folder) else _read_weights(folder)
    check_finite(tensors, folder if is_checkpoint(folder) else folder / WEIGHTS)
    return upgrade.tensors(tensors) if upgrade.is_old(read_json(recipe_path(folder))) else tensors


def _read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint as a model folder has them, that is with LoRA merged."""
    tensors, recipe = read_weights(folder), read_recipe(folder)
    trainings = {"image": recipe.towers.image, "text": recipe.towers.text}
    adapted = {name: training for name, training in trainings.items() if training.mode == "lora"}
    if not adapted:
        return tensors
    task = recipe.build_on_meta()
    assert isinstance(task.model, VisionLanguageModel)  # no other model has towers
    for name, training in adapted.items():
        add_lora(task.model.towers()[name].fsdp_blocks(), training.rank, training.alpha, training.targets)
    return merge_lora(task, tensors)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    try:
        check_regular(folder / WEIGHTS)
        tensors = load_tensors(folder / WEIGHTS)
    except (SafetensorError, ValueError, OSError) as error:
        raise DualfuseError(f"{folder / WEIGHTS} is missing, truncated or not a safetensors file: {error}") from error
    verify(folder, WEIGHTS)
    return tensors


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise ``DualfuseError`` that names the tensors with a value that is NaN or infinite."""
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise DualfuseError(
            f"{path} holds NaN or infinite values in {len(broken)} of {len(tensors)} tensors: {listing(broken)}; the "
            "training that wrote it had failed, or the file is damaged"
        )


def verify(folder: Path, *names: str) -> None:
    """Raise ``DualfuseError`` that names the files whose content is not the one that :func:`save` wrote."""
    if changed := checksums.differing_files(folder, names):
        raise DualfuseError(
            f"{listing(changed)}: the content differs from the one that was saved, by its checksum; bits have flipped, "
            f"or the file was edited. Restore it, or delete {folder / checksums.FILE} to load it as it is"
        )


def download(name: str, files: tuple[str, ...] = MODELS) -> Path:
    """Return the local folder of a model on the Hugging Face hub, OWNER/NAME, or one file of it, OWNER/NAME/FILE.

    Files in the cache are not fetched again, and are found without a network. Raises ``DualfuseError`` with the command
    that fetches the files on another machine if the name is not found, and ``MissingExtraError`` without the extra hub.
    """
    parts = name.split("/", 2)
    if not all(re.fullmatch(r"[\w.-]*\w[\w.-]*", part) for part in parts[:2]):
        raise DualfuseError(f"{name!r} is neither a local path nor a name on the Hugging Face hub (OWNER/NAME)")
    repository, chosen = "/".join(parts[:2]), parts[2] if len(parts) == 3 else f"--include {shlex.join(files)}"
    advice = (
        (
            f"; without a network here, run on a machine that has one: hf download {repository} {chosen} --local-dir "
            f"{parts[1]}, copy the folder {parts[1]} to this machine, and give its path in place of the name"
        )
        if len(parts) > 1
        else ""
    )
    with _hub(f"{name!r} is not a local path, and could not be fetched from the Hugging Face hub", advice):
        from huggingface_hub import hf_hub_download, snapshot_download

        if len(parts) == 3:
            return Path(hf_hub_download(repository, parts[2]))
        folder = Path(snapshot_download(name, allow_patterns=list(files)))
        if files == MODELS and not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*files, "pytorch_model*"]))
            if not any(folder.glob("pytorch_model*")):
                folder = Path(snapshot_download(name, allow_patterns=[*files, "open_clip_model.safetensors"]))
            if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*")):
                folder = Path(snapshot_download(name, allow_patterns=[*files, "open_clip_pytorch_model.bin"]))
        return folder


def upload(folder: Path, name: str, *, private: bool = True) -> str:
    """Upload a model folder to the Hugging Face hub as OWNER/NAME, and return its address.

    Its provenance.json, which names the host and local paths, is not uploaded.

    The token is that of ``hf auth login`` or of the variable HF_TOKEN. Raises ``DualfuseError`` if the hub refuses.
    """
    if not (folder / CONFIG).is_file() or not any(folder.glob("*.safetensors")):
        raise DualfuseError(f"{folder} is not a model folder: it needs a {CONFIG} and weights, as OUT/final has")
    with _hub(f"{folder} could not be uploaded to the Hugging Face hub as {name!r}"):
        from huggingface_hub import HfApi

        address = HfApi().create_repo(name, private=private, exist_ok=True)
        HfApi().upload_folder(
            repo_id=name, folder_path=folder, ignore_patterns=[PROVENANCE], commit_message="Model of dualfuse"
        )
        return str(address)


@contextmanager
def _hub(failure: str, advice: str = "") -> Iterator[None]:
    """Turn any exception of the hub's client into a ``DualfuseError``: ``failure``, its reason, and ``advice``."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError("the Hugging Face hub", "hub") from error
    except Exception as error:  # of huggingface_hub, of its HTTP client, which changes with its versions, of the disk
        raise DualfuseError(f"{failure}: {(str(error).splitlines() or [repr(error)])[0]}{advice}") from error
