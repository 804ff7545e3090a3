"""Foreign checkpoints to model folders, and model folders to folders of Hugging Face and official checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor

from dualfuse import hub
from dualfuse.card import write_card
from dualfuse.config import IS
from dualfuse.convert.build import Converted, build
from dualfuse.convert.foreign import read_checkpoint
from dualfuse.convert.report import FILE, Report
from dualfuse.convert.tensor_files import read_json
from dualfuse.convert.towers import from_towers
from dualfuse.convert.vlmo_files import is_beit, with_bert, with_language_of_vision
from dualfuse.convert.write_beit import FILE as BEIT
from dualfuse.convert.write_beit import write_beit
from dualfuse.convert.write_hugging_face import write_hugging_face
from dualfuse.convert.write_official import FILE as CHECKPOINT
from dualfuse.convert.write_official import write_official
from dualfuse.errors import DualfuseError
from dualfuse.io import atomic_folder, atomic_write, listing, write_json
from dualfuse.recipe import Recipe
from dualfuse.tasks.finetune.image_classification import ImageClassification

KEPT = "unused.safetensors"
"""Beside a model folder: tensors without effect that only the way back needs."""


def convert(
    source: Path | str,
    destination: Path,
    *,
    to: Literal["dualfuse", "huggingface", "official"] = "dualfuse",
    text: str = "",
    tokenizer: str = "",
    recipe: Recipe | None = None,
    language: Literal["random", "vision"] = "random",
) -> Report:
    """Write the checkpoint ``source`` to the folder ``destination``, and gives what became of every tensor.

    ``source`` is a folder of Hugging Face's BridgeTower or its name on the hub, an official checkpoint, a model folder,
    CLIP (then ``text`` is RoBERTa, and ``recipe`` may say what is built above them), or BEiT. Of BEiT, ``text`` may be
    BERT; without it ``language`` says what the language experts begin as: random as in the official code, or copies of
    the vision experts. Raises ``DualfuseError`` for anything that cannot be converted as a whole.
    """
    path = locate(source)
    _refuse(path, destination)
    if is_ours(path) and to == "dualfuse":
        raise DualfuseError(f"{path} is a model folder of dualfuse already; did you mean --to huggingface or official?")
    if language != "random":
        converted = _with_copied_experts(path, text, tokenizer)
    elif text:
        converted = _with_text(path, locate(text), recipe, tokenizer)
    elif recipe is not None:
        raise DualfuseError("a recipe says what is built above CLIP and RoBERTa; give RoBERTa too, with --text")
    else:
        converted = open_model(path, tokenizer)
    destination.parent.mkdir(parents=True, exist_ok=True)
    return WRITERS[to](converted, destination)


def open_model(path: Path, tokenizer: str = "") -> Converted:
    """Return the task of a model folder of ours or of a foreign checkpoint."""
    if not is_ours(path):
        return build(read_checkpoint(path, tokenizer))
    loaded = hub.load(path)
    kept = safetensors.torch.load_file(path / KEPT) if (path / KEPT).is_file() else {}
    report = Report(str(path), {name: tuple(tensor.shape) for name, tensor in loaded.task.state_dict().items()})
    return Converted(loaded.task, hub.with_tokenizer(loaded.recipe, path), kept, report)


def _with_text(path: Path, text: Path, recipe: Recipe | None, tokenizer: str) -> Converted:
    """Return BEiT's and BERT's weights in a VLMo, or CLIP's and RoBERTa's in a BridgeTower."""
    if not is_beit(path):
        return from_towers(path, text, recipe, tokenizer)
    if recipe is not None:
        raise DualfuseError(
            "what is built of BEiT and BERT follows from their sizes; convert them without --recipe, and train the "
            "recipe with --start-from FOLDER: positions are resized there"
        )
    return build(with_bert(read_checkpoint(path), text, tokenizer))


def _with_copied_experts(path: Path, text: str, tokenizer: str) -> Converted:
    if text or is_ours(path) or not is_beit(path):
        raise DualfuseError(
            f"language experts start as copies of vision experts in a BEiT alone, not in {text or path}"
        )
    return build(with_language_of_vision(read_checkpoint(path, tokenizer)))


def locate(source: Path | str) -> Path:
    """Return the path of a file or folder, downloaded if ``source`` is a name on the Hugging Face hub instead."""
    path = Path(source)
    if path.exists():
        return path
    here = [str(parent) for parent in path.parents if parent.exists() and str(parent) != "."]
    if here:  # a path with a mistake in it, which the hub need not be asked about
        raise DualfuseError(f"{source} is not there; {here[0]} is, and holds {_listed(Path(here[0]))}")
    return hub.download(str(source))


def _listed(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return listing(names)


def is_ours(path: Path) -> bool:
    """Whether a path is a model folder of dualfuse."""
    return (path / hub.CONFIG).is_file() and IS in read_json(path / hub.CONFIG)


def _refuse(source: Path, destination: Path) -> None:
    if destination.is_dir() and any(destination.iterdir()) and not (destination / FILE).is_file():
        raise DualfuseError(f"{destination} holds other things; give a folder that is new, empty or a conversion's")
    if destination.exists() and not destination.is_dir():
        raise DualfuseError(f"{destination} is a file; give a folder that is new, empty or a conversion's")
    if destination.resolve() in (source.resolve(), *source.resolve().parents):
        raise DualfuseError(f"{destination} would replace {source} itself; give another folder")


def _write_ours(converted: Converted, destination: Path) -> Report:
    hub.save(destination, converted.task, converted.recipe)
    if converted.kept:
        with atomic_write(destination / KEPT) as partial:
            _save(converted.kept, partial)
    converted.report.save(destination)
    write_card(destination)
    return converted.report


def _write_theirs(converted: Converted, destination: Path) -> Report:
    written = write_hugging_face(converted)
    with atomic_folder(destination, written.tensors.values()) as partial:
        _save(written.tensors, partial / hub.WEIGHTS)
        for name, content in written.files.items():
            write_json(partial / name, content, indent=2)
        converted.recipe.data.text_transform.save(partial)
        written.report.save(partial)
    return written.report


def _write_official(converted: Converted, destination: Path) -> Report:
    """Write one file in a folder: for the released loader as Lightning has it, or as BEiT's code has it."""
    if isinstance(converted.task, ImageClassification):
        beit = write_beit(converted)
        _save_pickled({"model": _whole(beit.tensors)}, destination / BEIT)
        beit.report.save(destination)
        return beit.report
    written = write_official(converted)
    said = {"config": written.hyper_parameters}
    _save_pickled({"state_dict": _whole(written.tensors), "hyper_parameters": said}, destination / CHECKPOINT)
    written.report.save(destination)
    return written.report


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _save_pickled(content: Mapping[str, object], path: Path) -> None:
    with atomic_write(path) as partial, partial.open("wb") as file:
        torch.save(dict(content), file)


WRITERS = {"dualfuse": _write_ours, "huggingface": _write_theirs, "official": _write_official}


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(whole, path, metadata={"format": "pt"})  # transformers asks for it
