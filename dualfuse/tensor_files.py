"""Tensors by name: safetensors files with tied tensors, and readers of pickles and sharded checkpoints.

No code of a file is run.
"""

from __future__ import annotations

import ast
import json
import logging
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dualfuse.child_process import run_confined
from dualfuse.errors import DualfuseError
from dualfuse.files import check_regular, open_regular, read_json
from dualfuse.io import listing
from dualfuse.pickles import RefusedGlobalError, module_tensors, read_pickle

logger = logging.getLogger(__name__)

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights in a Hugging Face folder, in the order of preference; NAME.index.json lists the shards of one."""
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Weights in a folder of open_clip."""
TIES = "tied"
"""Key in the metadata of a safetensors file: the names of tied tensors, each with the name it is stored under."""
WRAPPERS = ("state_dict", "module", "model")
"""Keys under which checkpoints of Lightning, DeepSpeed and BEiT hold their tensors."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and the hyper-parameters that a Lightning checkpoint stores beside them."""

    tensors: dict[str, Tensor]
    hyper_parameters: Mapping[str, object] = field(default_factory=dict[str, object])


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file for :func:`load_tensors`; a tensor with several names, such as a tied weight, once."""
    names: dict[tuple[object, ...], str] = {}
    storages, stored, ties = set[int](), dict[str, Tensor](), dict[str, str]()
    for name, tensor in tensors.items():
        tensor, storage = tensor.detach(), tensor.untyped_storage().data_ptr()
        view = (storage, tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride())
        first = names.setdefault(view, name) if tensor.numel() else name
        if first != name:
            ties[name] = first
            continue
        tensor = tensor.cpu().contiguous()
        stored[name] = tensor.clone() if storage in storages else tensor  # safetensors refuses overlapping views
        storages.add(storage)
    safetensors.torch.save_file(stored, path, {TIES: json.dumps(ties)} if ties else None)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, tied ones under each of their names.

    Raises ``SafetensorError`` if the file is damaged, ``ValueError`` if its list of ties is.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        ties = json.loads((file.metadata() or {}).get(TIES, "{}"))
    tensors = safetensors.torch.load_file(path)
    if not (isinstance(ties, dict) and all(first in tensors for first in ties.values())):
        raise DualfuseError(f"{path} lists tied tensors that it does not hold")
    return tensors | {name: tensors[first] for name, first in ties.items()}


def find_weights(folder: Path) -> Path:
    """Return the file in a Hugging Face folder that holds the weights, or the index of their shards."""
    names = [name for file in FILES for name in (file, f"{file}.index.json")]
    for name in (*OPEN_CLIP_FILES, *names) if (folder / "open_clip_config.json").is_file() else names:
        if (folder / name).is_file():
            return folder / name
    content = listing(sorted(path.name for path in folder.iterdir()))
    raise DualfuseError(f"{folder} has no weights: it holds {content}, and should hold one of {', '.join(names)}")


def has_hugging_face_weights(folder: Path) -> bool:
    """Whether a folder holds weights under Hugging Face's names of files."""
    return any((folder / name).is_file() for file in FILES for name in (file, f"{file}.index.json"))


def read_weights(path: Path) -> Weights:
    """Return the tensors of a safetensors file, a pickle or a sharded checkpoint (its index).

    A pickle is a state dict (plain, or wrapped as Lightning, DeepSpeed and BEiT do), a module, or a TorchScript
    archive. Raises ``DualfuseError`` for a file that is damaged or holds no tensors by name, and for one that names
    other classes than those of tensors and networks, which is not opened.
    """
    if not path.is_file():
        raise DualfuseError(f"{path} is not a file")
    if path.name.endswith(".index.json"):
        return Weights(_read_shards(path))
    match _kind(path):
        case "safetensors":
            return _without_wrappers(Weights(_read_safetensors(path)), path)
        case "pickle":
            return _without_wrappers(_read_confined(path), path)
    raise DualfuseError(f"{path} has an unknown ending; weights end in {', '.join(('.safetensors', *PICKLES))}")


def _kind(path: Path) -> str:
    """Return the format of weights by their first bytes, or by the suffix if those are unknown."""
    with open_regular(path) as file:
        head = file.read(9)
    if head[8:] == b"{":
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "pickle"
    return "safetensors" if path.suffix == ".safetensors" else "pickle" if path.suffix in PICKLES else ""


def _without_wrappers(weights: Weights, path: Path) -> Weights:
    """Remove the parts of names that torch.compile and DataParallel add."""
    names = {name: name.replace("_orig_mod.", "") for name in weights.tensors}
    if all(name.startswith("module.") for name in names.values()):
        names = {name: short.removeprefix("module.") for name, short in names.items()}
    if all(name == short for name, short in names.items()) or len(set(names.values())) < len(names):
        return weights
    logger.info("%s: names of tensors are read without _orig_mod. and module. of torch.compile and DataParallel", path)
    return replace(weights, tensors={names[name]: tensor for name, tensor in weights.tensors.items()})


def describe_file(path: Path) -> str:
    """Return what a file that should have held tensors is, in words that complete "it is …"."""
    if not path.exists():
        return "not there"
    if path.is_dir():
        return "a folder"
    size = path.stat().st_size
    try:
        check_regular(path)
    except DualfuseError as error:
        return str(error).partition(" is ")[2]
    with path.open("rb") as file:
        head = file.read(512)
    kinds = (
        (not head, "an empty file"),
        (head.startswith(b"version https://git-lfs"), "a git-lfs pointer, not the file itself (run: git lfs pull)"),
        (head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")), "an HTML page (a login or error page?)"),
        (head.startswith(b"PK\x03\x04"), "a zip archive, as torch.save writes"),
        (re.match(rb"\x80[\x02-\x05]", head), "a Python pickle, as older torch.save wrote"),
        (head[257:262] == b"ustar", "a tar archive"),
        (head.startswith(b"\x1f\x8b"), "a gzip archive"),
    )
    for matches, description in kinds:
        if matches:
            return f"{description} ({size} bytes)"
    return _describe_safetensors(path, head, size)


def _describe_safetensors(path: Path, head: bytes, size: int) -> str:
    """Compare the size with the header: 8 bytes of length, then JSON with the offsets of the tensors."""
    length = int.from_bytes(head[:8], "little")
    if not head[8:].startswith(b"{"):
        return f"truncated or not a safetensors file ({size} bytes)"
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(8 + min(length, size))[8:])
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        expected = 8 + length + int(end)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return f"a truncated or damaged safetensors file ({size} bytes)"
    return f"a {'' if size == expected else 'truncated '}safetensors file ({size} of {expected} bytes)"


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        shard_of = read_json(index)["weight_map"]
        shards = sorted({str(shard) for shard in shard_of.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DualfuseError(f"{index} does not list the shards of a checkpoint: {error!r}") from error
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard or shard.endswith(".index.json"):
            raise DualfuseError(f"{index} lists {shard!r}, which is not a file beside it")
        try:
            tensors |= read_weights(index.with_name(shard)).tensors
        except OSError as error:  # such as a name that is too long
            raise DualfuseError(f"{index} lists {shard[:80]!r}, which cannot be read: {error.strerror}") from error
    if missing := sorted(shard_of.keys() - tensors.keys()):
        raise DualfuseError(f"{index} lists {len(missing)} tensors that its shards do not hold, such as {missing[0]}")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(path)
    except Exception as error:  # safetensors' own, and those of torch for shapes that do not fit
        raise DualfuseError(f"{path} is damaged: it is {describe_file(path)}. {error}") from error


def _read_confined(path: Path) -> Weights:
    """Read a pickle in a child process, which returns tensors and settings by files."""
    with tempfile.TemporaryDirectory() as folder:
        result, settings = Path(folder) / "weights.safetensors", Path(folder) / "settings.txt"

        def convert() -> None:
            weights = _read_pickled(path)
            storages, views = _split(weights.tensors)
            settings.write_text(repr((views, _literal(weights.hyper_parameters))), encoding="utf-8")
            try:
                safetensors.torch.save_file(storages, result)
            except Exception as error:  # such as a full disk
                raise DualfuseError(f"the tensors of {path} could not be written to {folder}: {error}") from error

        run_confined(convert, path, result)
        views, hyper_parameters = ast.literal_eval(settings.read_text(encoding="utf-8"))
        storages = safetensors.torch.load_file(result)
        return Weights({name: _view(storages[key], *view) for name, (key, *view) in views.items()}, hyper_parameters)


def _split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, tuple[object, ...]]]:
    """Return storages of tensors by address and type, and each tensor as a view: storage, shape, strides, offset."""
    storages: dict[str, Tensor] = {}
    views: dict[str, tuple[object, ...]] = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage()
        key = f"{memory.data_ptr()} {tensor.dtype}"
        if key not in storages:
            base = torch.empty(0, dtype=tensor.dtype)
            storages[key] = base.set_(memory, 0, (memory.nbytes() // base.itemsize,), (1,)).clone()
        views[name] = key, tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
    return storages, views


def _view(base: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Tensor:
    return base.as_strided(shape, strides, base.storage_offset() + offset)


def _literal(value: object) -> object:
    """Return settings as Python literals; other objects become their description."""
    match value:
        case dict():
            return {key: _literal(item) for key, item in value.items() if isinstance(key, str | int)}
        case list():
            return [_literal(item) for item in value]
        case tuple():
            return tuple(map(_literal, value))
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
    return str(value)


def _read_pickled(path: Path) -> Weights:
    try:
        content: Any = read_pickle(path)  # Any: whatever the file holds
        items = content if isinstance(content, dict) else {}
        wrapper = next((key for key in WRAPPERS if isinstance(items.get(key), dict)), "")
        named = items.get(wrapper, items) or dict(module_tensors(content))
        named = {name: value for name, value in named.items() if isinstance(name, str) and isinstance(value, Tensor)}
    except MemoryError:
        raise  # a limit of the child process
    except RefusedGlobalError as error:
        raise DualfuseError(_refused(path, str(error))) from error
    except Exception as error:  # a damaged pickle can raise whatever its instructions lead to
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DualfuseError(
            f"{path} is damaged or was not written by torch.save: it is {describe_file(path)}. {first_line}"
        ) from error
    if wrapper == "module":  # DeepSpeed wraps the model once more
        named = {name.removeprefix("module."): tensor for name, tensor in named.items()}
    if not named:
        keys = f" with the keys {listing(items)}" if items else ""
        raise DualfuseError(f"{path} holds no tensors by name, only a {type(content).__name__}{keys}")
    stored = items.get("hyper_parameters")
    stored = stored.get("config", stored) if isinstance(stored, dict) else {}
    return Weights(named, stored if isinstance(stored, dict) else {})


def _refused(path: Path, name: str) -> str:
    return (
        f"{path} asks for {name}, which is not part of a plain network, and could run code on this machine; it was not "
        "opened. Ask its author for a safetensors file, or for a checkpoint that holds the state dict alone"
    )
