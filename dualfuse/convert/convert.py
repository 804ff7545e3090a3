"""Third-party checkpoints to model folders, and model folders to third-party checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor

from dualfuse import hub
from dualfuse.card import write_card
from dualfuse.checksums import unwritten_files, write_checksums
from dualfuse.config import JSON
from dualfuse.convert.checkpoint import Converted, Source, WrittenCheckpoint, build
from dualfuse.convert.formats import FORMATS, beit, targets
from dualfuse.convert.initial_weights import from_clip_and_roberta, with_bert, with_copied_experts
from dualfuse.convert.load import is_model_folder, locate, read_checkpoint
from dualfuse.convert.report import FILE, Report, shapes
from dualfuse.errors import DualfuseError
from dualfuse.io import atomic_folder, listing, write_json
from dualfuse.recipe import Recipe
from dualfuse.run_folder import is_checkpoint
from dualfuse.tensor_files import read_weights

KEPT = "unused.safetensors"
"""File in a model folder for tensors without effect, which only the conversion back needs."""


def convert(
    source: Path | str,
    destination: Path,
    *,
    to: str = "dualfuse",
    text: str = "",
    tokenizer: str = "",
    recipe: Recipe | None = None,
    language: Literal["random", "vision"] = "random",
) -> Report:
    """Write the checkpoint ``source`` to the folder ``destination``, and return what became of every tensor.

    ``source`` is a checkpoint in one of the ``FORMATS``, a model folder, or CLIP, each a path or a name on the hub.
    For CLIP, ``text`` is RoBERTa, and ``recipe`` the model above them. For BEiT, ``text`` may be BERT; without it
    ``language`` initializes the language experts: random as in the official code, or copies of the vision experts.
    ``to`` is "dualfuse" or the target of a format. Raises ``DualfuseError`` for anything that cannot be converted.
    """
    path = locate(source)
    _check_destination(path, destination)
    if is_checkpoint(path) and to == "dualfuse":
        raise DualfuseError(f"{path} is a checkpoint of a run; dualfuse export {path} makes a model folder of it")
    if is_model_folder(path) and to == "dualfuse":
        raise DualfuseError(
            f"{path} is a model folder of dualfuse already; did you mean --to {' or '.join(targets())}?"
        )
    if language != "random":
        converted = _with_copied_experts(path, text, tokenizer)
    elif text:
        converted = _with_text(path, locate(text), recipe, tokenizer)
    elif recipe is not None:
        raise DualfuseError("a recipe is for the model above CLIP and RoBERTa; give RoBERTa too, with --text")
    else:
        converted = open_checkpoint(path, tokenizer)
    destination.parent.mkdir(parents=True, exist_ok=True)
    if to == "dualfuse":
        return _save_model_folder(converted, destination)
    written = write_checkpoint(converted, to)
    save_checkpoint(written, converted.recipe, destination)
    return written.report


def open_checkpoint(path: Path, tokenizer: str = "") -> Converted:
    """Return the task of a model folder or of a third-party checkpoint."""
    if not is_model_folder(path):
        return build(read_checkpoint(path, tokenizer))
    loaded = hub.load(path)
    hub.verify(path, KEPT)
    kept = read_weights(path / KEPT).tensors if (path / KEPT).is_file() else {}
    report = Report(str(path), shapes(loaded.task.state_dict()), origins=hub.read_origins(path))
    return Converted(loaded.task, hub.with_tokenizer(loaded.recipe, path), kept, report)


def write_checkpoint(converted: Converted, to: str) -> WrittenCheckpoint:
    """Return the content in the format of the target ``to`` that stores models and tasks of this class."""
    if to not in targets():
        raise DualfuseError(f"there is no target {to!r}; there are dualfuse, {', '.join(targets())}")
    formats, recipe = [entry for entry in FORMATS if entry.target == to], converted.recipe
    for entry in formats:
        if entry.stores(recipe):
            return entry.write(converted)
    raise DualfuseError(
        f"--to {to} writes {', '.join(entry.name for entry in formats)}, none of which stores a "
        f"{type(recipe.model).__name__} for {type(recipe.task).__name__}"
    )


def _with_text(path: Path, text: Path, recipe: Recipe | None, tokenizer: str) -> Converted:
    """Return the weights of BEiT and BERT in a VLMo, or of CLIP and RoBERTa in a BridgeTower."""
    if not beit.recognize(Source(path)):
        return from_clip_and_roberta(path, text, recipe, tokenizer)
    if recipe is not None:
        raise DualfuseError(
            "the sizes of BEiT and BERT determine the model; convert them without --recipe, and train the recipe with "
            "--start-from FOLDER: positions are resized there"
        )
    return build(with_bert(read_checkpoint(path), text, tokenizer))


def _with_copied_experts(path: Path, text: str, tokenizer: str) -> Converted:
    if text or is_model_folder(path) or not beit.recognize(Source(path)):
        raise DualfuseError(f"language experts can be copies of vision experts only in a BEiT, not in {text or path}")
    return build(with_copied_experts(read_checkpoint(path, tokenizer)))


def _check_destination(source: Path, destination: Path) -> None:
    allowed = "give a folder that is new, empty or of an earlier conversion"
    if destination.is_dir() and any(destination.iterdir()) and not (destination / FILE).is_file():
        raise DualfuseError(
            f"{destination} holds other files, {listing(path.name for path in destination.iterdir())}; {allowed}"
        )
    if destination.is_dir() and (others := unwritten_files(destination)):
        raise DualfuseError(
            f"{destination} is of an earlier conversion, but {listing(others)} would be lost: added or changed since; "
            f"move them away, or {allowed}"
        )
    if destination.exists() and not destination.is_dir():
        raise DualfuseError(f"{destination} is a file; {allowed}")
    if destination.resolve() in (source.resolve(), *source.resolve().parents):
        raise DualfuseError(f"{destination} would replace {source} itself; give another folder")


def _save_model_folder(converted: Converted, destination: Path) -> Report:
    def write_more(folder: Path) -> None:
        if converted.kept:
            _save_tensors(converted.kept, folder / KEPT)
        converted.report.save(folder)
        write_card(folder)

    origins: JSON = dict(converted.report.origins.items())
    notes = {hub.ORIGINS: origins} if origins else {}
    hub.save(destination, converted.task, converted.recipe, notes=notes, write_more=write_more)
    return converted.report


def save_checkpoint(written: WrittenCheckpoint, recipe: Recipe, destination: Path) -> None:
    """Write a third-party checkpoint to a folder, which it replaces when it is complete."""
    with atomic_folder(destination, written.tensors.values(), hub.NO_SPACE) as partial:
        if not written.file.endswith(".safetensors"):
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in written.tensors.items()}
            _save_pickle({written.key: tensors, **written.beside} if written.key else tensors, partial / written.file)
        else:
            _save_tensors(written.tensors, partial / written.file)
        for name, content in written.json_files.items():
            write_json(partial / name, content, indent=2)
        if written.json_files:
            recipe.data.text_transform.save(partial)
        written.report.save(partial)
        write_checksums(partial)


def _save_pickle(content: Mapping[str, object], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # which torch raises while it handles the error of the file
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(contiguous, path, metadata={"format": "pt"})  # transformers needs the metadata
