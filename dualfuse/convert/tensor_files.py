"""Reads tensors of foreign files: safetensors and pickles of torch, both also in parts. No code of a file is run."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dualfuse.convert.torchscript import is_torchscript, read_torchscript
from dualfuse.data.modest_pickle import check_archive
from dualfuse.errors import DualfuseError

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights in a folder of Hugging Face, the best first; NAME.index.json beside parts of one."""

LIGHTNING = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""Classes that its older checkpoints mention; a plain dict stands for each, and Lightning is not needed."""
ARGUMENTS = (SimpleNamespace, "argparse.Namespace")
"""What BEiT's code stores beside its weights; the stand-in has fields and nothing else."""
INSIDE = ("state_dict", "module", "model")
"""Where checkpoints of Lightning, DeepSpeed and BEiT have their tensors."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and what a Lightning checkpoint says about how they were trained."""

    tensors: dict[str, Tensor]
    hyper_parameters: Mapping[str, object] = field(default_factory=dict[str, object])


def find_weights(folder: Path) -> Path:
    """Return the file of a Hugging Face folder that holds its weights, or lists the parts that do."""
    names = [name for file in FILES for name in (file, f"{file}.index.json")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    inside = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    raise DualfuseError(f"{folder} has no weights: it holds {inside}, and should hold one of {', '.join(names)}")


def read_weights(path: Path) -> Weights:
    """Return the tensors of a file; ``DualfuseError`` says what is wrong with it, and which code it wanted to run."""
    if not path.is_file():
        raise DualfuseError(f"{path} is no file")
    if path.name.endswith(".index.json"):
        return Weights(_read_parts(path))
    if path.suffix == ".safetensors":
        return Weights(_read_safetensors(path))
    if path.suffix in PICKLES:
        return _read_pickle(path)
    raise DualfuseError(f"{path} has an unknown ending; weights end in {', '.join(('.safetensors', *PICKLES))}")


def read_json(path: Path) -> dict[str, Any]:  # Any: what a file holds
    """Return the object in a JSON file; ``DualfuseError`` for anything else."""
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DualfuseError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(said, dict):
        raise DualfuseError(f"{path} holds no JSON object")
    return said


def _read_parts(index: Path) -> dict[str, Tensor]:
    try:
        parts = json.loads(index.read_text())["weight_map"]
        files = sorted({str(part) for part in parts.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DualfuseError(f"{index} does not list the parts of a checkpoint: {error!r}") from error
    tensors: dict[str, Tensor] = {}
    for file in files:
        if Path(file).name != file or file.endswith(".index.json"):
            raise DualfuseError(f"{index} lists {file!r}, which is no file beside it")
        try:
            tensors |= read_weights(index.with_name(file)).tensors
        except OSError as error:  # such as a name that is too long
            raise DualfuseError(f"{index} lists {file[:80]!r}, which cannot be read: {error.strerror}") from error
    if missing := sorted(parts.keys() - tensors.keys()):
        raise DualfuseError(f"{index} lists {len(missing)} tensors that its files do not hold, such as {missing[0]}")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # its own, and what torch raises for shapes that do not fit
        raise DualfuseError(f"{path} is damaged or no safetensors file ({_look(path)}): {error}") from error


def _read_pickle(path: Path) -> Weights:
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
        if is_torchscript(path):
            content = read_torchscript(path)
        else:  # a file of torch before 1.6 is no archive, and cannot be mapped
            with torch.serialization.safe_globals([*((dict, name) for name in LIGHTNING), ARGUMENTS]):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise DualfuseError(_unsafe(path, str(error))) from error
    except Exception as error:  # a damaged pickle can raise whatever its instructions lead to
        raise DualfuseError(f"{path} is damaged or no checkpoint of torch ({_look(path)}): {_first(error)}") from error
    if not isinstance(content, dict):
        raise DualfuseError(f"{path} holds a {type(content).__name__} where a checkpoint holds tensors by name")
    whole: dict[str, Any] = content  # Any: whatever the file holds
    place = next((name for name in INSIDE if isinstance(whole.get(name), dict)), "")
    named, said = whole[place] if place else whole, whole.get("hyper_parameters")
    tensors = {name: tensor for name, tensor in named.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    if place == "module":  # DeepSpeed wraps the model once more
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if not tensors:
        raise DualfuseError(
            f"{path} holds no tensors by name, but {', '.join(map(str, list(content)[:8])) or 'nothing'}"
        )
    said = said.get("config", said) if isinstance(said, dict) else {}
    return Weights(tensors, said if isinstance(said, dict) else {})


def _unsafe(path: Path, error: str) -> str:
    wanted = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", error)
    if not wanted:
        return f"{path} is damaged or no checkpoint of torch ({_look(path)}): {error.splitlines()[0]}"
    safe = path.with_suffix(".safe.ckpt")
    return (
        f"{path} asks for {wanted[1]}, which is more than tensors, and could run code on this machine; it was not "
        "opened. If you trust who made it, open it where it can do no harm and keep the tensors alone:\n"
        f"  python -c \"import torch; c = torch.load({str(path)!r}, map_location='cpu', weights_only=False); "
        f"torch.save({{'state_dict': c.get('state_dict', c)}}, {str(safe)!r})\""
    )


def _look(path: Path) -> str:
    """Return what a file looks like that is not what its name says."""
    with path.open("rb") as file:
        start = file.read(200)
    size = f"{path.stat().st_size:,} bytes"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS and not the file itself: run git lfs pull"
    if start.lstrip()[:1] == b"<":
        return f"{size} of a web page: the download went wrong"
    if start.startswith(b"PK"):
        return f"{size} of an archive, perhaps cut off: download it again"
    return f"{size}, perhaps cut off" if start else "it is empty"


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
