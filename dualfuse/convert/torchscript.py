"""Reads the tensors of a TorchScript archive, as OpenAI published CLIP, without running what else is in it.

The archive is a zip. Its data.pkl describes objects of classes that only the archive's own code defines; here each
becomes a :class:`_Module` that remembers its attributes, and every other name a pickle may ask for is refused.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualfuse.data.modest_pickle import check_pickle

_STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in (
        ("Float", torch.float32),
        ("Half", torch.float16),
        ("BFloat16", torch.bfloat16),
        ("Double", torch.float64),
        ("Long", torch.int64),
        ("Int", torch.int32),
        ("Bool", torch.bool),
    )
}


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return parameters and buffers by their dotted names; ``DualfuseError`` or ``UnpicklingError`` for anything odd."""
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).partition("/")[0]
        return dict(_named(_Reader(archive, root).load(), ""))


class _Module:
    """An object of the archive: its attributes, and nothing that could be called."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"an object of the archive has the state {type(state).__name__}")
        self.attributes = state


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        file = io.BytesIO(archive.read(f"{root}/data.pkl"))
        check_pickle(file)
        super().__init__(file)
        self.archive, self.root = archive, root

    def find_class(self, module_name: str, global_name: str, /) -> Any:  # Any: as the base class has it
        if module_name.startswith("__torch__"):
            return _Module
        allowed: dict[tuple[str, str], Callable[..., object] | torch.dtype] = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("collections", "OrderedDict"): OrderedDict,
        } | {("torch", name): dtype for name, dtype in _STORAGES.items()}
        if (module_name, global_name) not in allowed:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module_name}.{global_name}")
        return allowed[module_name, global_name]

    def persistent_load(self, pid: Any, /) -> Tensor:  # Any: as the base class has it
        _, dtype, key, _, count = pid
        data = bytearray(self.archive.read(f"{self.root}/data/{int(key)}"))
        return torch.frombuffer(data, dtype=dtype, count=count) if data else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _named(module: object, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(module, _Module):
        for name, value in module.attributes.items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            else:
                yield from _named(value, f"{prefix}{name}.")
