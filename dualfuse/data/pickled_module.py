"""Reads the tensors of a whole module that was pickled, as OpenAI published DALL-E's, without running the pickle.

Such a file names the classes of its modules, and to open it the ordinary way imports and calls them. Here each becomes
a :class:`_Shell` that remembers its attributes; tensors are built anew, and any other name that a pickle asks for is
refused. Nothing is imported on behalf of the file.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dualfuse.data.modest_pickle import check_archive, check_pickle
from dualfuse.errors import DualfuseError

SHELLS = ("dall_e.", "torch.nn.modules.")
"""Beginnings of the names of classes of which only the attributes are kept."""

DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
PROTOCOL = 1001  # of torch.save before it wrote archives


def read_pickled_module(path: Path) -> dict[str, Tensor]:
    """Return parameters and buffers by their dotted names, or the entries of a plain state dict.

    Reads both forms that torch.save has written. Raises DualfuseError for a file that is neither, that is damaged, or
    that asks for anything but tensors and the modules of a network: it is then named, and has not been run.
    """
    if not path.is_file():
        raise DualfuseError(f"{path} is no file")
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
        with path.open("rb") as file:
            content = _read_archive(file) if zipfile.is_zipfile(file) else _read_stream(file)
        tensors = dict(_named(content, ""))
    except _Refused as error:
        raise DualfuseError(
            f"{path} asks for {error}, which is no part of a plain network; it was not opened, as that could run code. "
            "If you trust who made it, open it where it can do no harm and save its state_dict() as safetensors"
        ) from error
    except Exception as error:  # a damaged pickle can raise whatever its instructions lead to
        raise DualfuseError(f"{path} is damaged or nothing that torch.save wrote: {error}") from error
    if not tensors:
        raise DualfuseError(f"{path} holds a {type(content).__name__} without tensors; a network is needed")
    return tensors


class _Refused(DualfuseError):
    """A name that no network needs."""


class _Shell:
    """An object of some class: its attributes, and nothing that could be called."""

    def __new__(cls, *_: object) -> _Shell:
        """Take whatever the class would have been called with."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise DualfuseError(f"a module has the state {type(state).__name__} where attributes are needed")
        self.attributes = state


class _Reader(pickle.Unpickler):
    """Builds tensors, dicts and shells; where storages come later, tensors look into what is filled then."""

    def __init__(self, file: BinaryIO, archive: zipfile.ZipFile | None = None, root: str = "", size: int = 0) -> None:
        check_pickle(file)
        super().__init__(file)
        self.archive, self.root, self.size = archive, root, size
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module_name: str, global_name: str, /) -> Any:  # Any: as the base class has it
        if module_name.startswith(SHELLS):
            return _Shell
        name = f"{module_name}.{global_name}"
        allowed: dict[str, object] = {f"torch.{storage}": dtype for storage, dtype in DTYPES.items()}
        allowed |= {
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch.device": _Shell,
            "collections.OrderedDict": OrderedDict,
            "__builtin__.set": set,
            "builtins.set": set,
        }
        if name not in allowed:
            raise _Refused(name)
        return allowed[name]

    def persistent_load(self, pid: Any, /) -> object:  # Any: as the base class has it
        if pid[0] == "module":  # a class together with its source code
            return pid[1]
        _, dtype, key, _, count = pid[:5]
        if key not in self.storages:
            self.storages[key] = self._read(dtype, str(key)) if self.archive else _room(dtype, count, self.size)
        return self.storages[key]

    def _read(self, dtype: torch.dtype, key: str) -> Tensor:
        assert self.archive is not None
        data = bytearray(self.archive.read(f"{self.root}/data/{key}"))
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _read_archive(file: BinaryIO) -> object:
    with zipfile.ZipFile(file) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("/data.pkl")
        return _Reader(io.BytesIO(archive.read(f"{root}/data.pkl")), archive, root).load()


def _read_stream(file: BinaryIO) -> object:
    """Read what torch.save wrote before archives: three headers, the object, and then the storages."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    _, protocol, _ = (_Reader(file).load() for _ in range(3))
    if protocol != PROTOCOL:
        raise DualfuseError(f"its protocol is {protocol}")
    reader = _Reader(file, size=size)
    content = reader.load()
    for key in _Reader(file).load():
        storage = reader.storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        data = file.read(count * storage.element_size())
        storage.copy_(torch.frombuffer(bytearray(data), dtype=storage.dtype))
    return content


def _room(dtype: torch.dtype, count: int, size: int) -> Tensor:
    if not 0 <= count <= size:
        raise DualfuseError(f"it has {size:,} bytes, and speaks of a storage of {count:,} numbers")
    return torch.zeros(count, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _named(part: object, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """List the tensors of a module, of its modules, or of a dict of either."""
    if isinstance(part, _Shell):
        for kind in ("_parameters", "_buffers", "_modules"):
            yield from _named(vars(part).get("attributes", {}).get(kind), prefix)
    elif isinstance(part, dict):
        for name, value in part.items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
            else:
                yield from _named(value, f"{prefix}{name}.")
