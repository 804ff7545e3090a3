"""Read the tensors of pickled files without running the pickle: what torch.save and torch.jit.save write.

Unpickling the ordinary way imports and calls whatever a file names. :class:`StrictUnpickler` resolves only the names it
is told, and :func:`read_pickle` only tensors, containers, and modules, which become inert :class:`_Module` objects.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.files import check_regular

MODULES = ("__torch__.", "dall_e.", "torch.nn.modules.")
"""Prefixes of the classes of which only the attributes are kept: scripted modules, DALL-E's, and those of PyTorch."""
DICTS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""Classes that checkpoints of PyTorch Lightning name; a plain dict replaces each."""
DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MEMO = ("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET")
"""Instructions that refer to the memo by index; Python allocates a memo of the largest index."""
MAX_EXPANSION = 10
"""Largest size of an archive's members relative to the archive; torch compresses only code and notes."""
LEGACY_PROTOCOL = 1001
"""Protocol number of torch.save before PyTorch 1.6, which wrote no archives."""


class RefusedGlobalError(DualfuseError):
    """A pickle names something other than tensors and the modules of a network; ``str`` is that name."""


class StrictUnpickler(pickle.Unpickler):
    """An unpickler whose names are resolved by ``resolve(module, name)``, which raises for anything unknown."""

    def __init__(self, file: BinaryIO, resolve: Callable[[str, str], object], encoding: str = "ASCII") -> None:
        check_pickle(file)
        super().__init__(file, encoding=encoding)
        self.resolve = resolve

    def find_class(self, module_name: str, global_name: str, /) -> Any:  # Any: as in the base class
        """Resolve a name."""
        return self.resolve(module_name, global_name)


def read_pickle(path: Path) -> object:
    """Return the content of a file of torch.save (either form) or torch.jit.save, without running any of its code.

    Tensors of an archive are mapped from the file, not copied. Modules become inert objects: see
    :func:`module_tensors`. Raises :class:`RefusedGlobalError` for a pickle that names anything else.
    """
    check_regular(path)
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return _read_legacy(file)
    check_archive(path)
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("/data.pkl")
        if f"{root}/byteorder" in archive.namelist() and archive.read(f"{root}/byteorder") != b"little":
            raise DualfuseError("its numbers are not little-endian")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        content = io.BytesIO(archive.read(f"{root}/data.pkl"))
        return _TensorUnpickler(content, partial(_archived_storage, archive, mapped, root)).load()


def module_tensors(content: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a module that :func:`read_pickle` read, by their dotted names."""
    attributes = content.attributes if isinstance(content, _Module) else {}
    if "_parameters" in attributes:
        named = [item for kind in ("_parameters", "_buffers", "_modules") for item in (attributes[kind] or {}).items()]
    else:  # scripted modules hold their tensors directly
        named = list(attributes.items())
    for name, value in named:
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from module_tensors(value, f"{prefix}{name}.")


def check_pickle(file: BinaryIO) -> None:
    """Raise ``DualfuseError`` for a pickle that is truncated or would make Python allocate more than its length.

    Reads the instructions up to the end of one pickle, runs none, and restores the position of ``file``.
    """
    start = file.tell()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file), start=1):
        if opcode.name in MEMO and isinstance(argument, int) and argument > number:
            raise DualfuseError(f"its instruction {number} refers to memo entry {argument}")
    file.seek(start)


def check_archive(path: Path) -> None:
    """Raise ``DualfuseError`` for an archive whose members are far larger than the archive."""
    check_regular(path)
    with zipfile.ZipFile(path) as archive:
        expanded, size = sum(member.file_size for member in archive.infolist()), path.stat().st_size
    if expanded > MAX_EXPANSION * size:
        raise DualfuseError(
            f"its {size:,} bytes are compressed and become {expanded:,}; torch does not compress tensors"
        )


class _Module:
    """An object of some class: its attributes, and nothing that could be called."""

    attributes: dict[str, Any]  # Any: whatever the file holds

    def __new__(cls, *_: object) -> _Module:
        """Ignore the arguments of the class."""
        module = super().__new__(cls)
        module.attributes = {}
        return module

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise DualfuseError(f"a module has the state {type(state).__name__} instead of attributes")
        self.attributes = state


class _TensorUnpickler(StrictUnpickler):
    """Builds tensors, containers and inert modules; ``storage(dtype, key, count)`` gives the numbers of a tensor."""

    def __init__(self, file: BinaryIO, storage: Callable[[torch.dtype, str, int], Tensor]) -> None:
        super().__init__(file, self._resolve)
        self.storage = storage
        self.storages: dict[str, Tensor] = {}
        # made anew for every file: a pickle can set attributes of a class or function that it names
        self.module = type("Module", (_Module,), {})
        self.names: dict[str, object] = {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
        self.names |= {str(dtype): dtype for dtype in DTYPES.values()} | dict.fromkeys(DICTS, dict)
        self.names |= {
            "torch._utils._rebuild_tensor_v2": partial(_tensor),
            "torch._utils._rebuild_parameter": partial(_first),
            "torch.device": self.module,
            "torch.Size": tuple,
            "argparse.Namespace": SimpleNamespace,
            "collections.OrderedDict": OrderedDict,
            "__builtin__.set": set,
            "builtins.set": set,
            "__builtin__.dict": dict,
            "builtins.dict": dict,
        }

    def _resolve(self, module_name: str, global_name: str) -> object:
        name = f"{module_name}.{global_name}"
        if name.startswith(MODULES):
            return self.module
        if name not in self.names:
            raise RefusedGlobalError(name)
        return self.names[name]

    def persistent_load(self, pid: Any, /) -> object:  # Any: as in the base class
        if pid[0] == "module":  # a class together with its source code
            return pid[1]
        _, dtype, key, _, count, *view = pid
        if any(view):
            raise DualfuseError("it holds views of storages, as only versions of torch before 0.4 wrote")
        if key not in self.storages:
            self.storages[key] = self.storage(dtype, str(key), count)
        return self.storages[key]


def _archived_storage(
    archive: zipfile.ZipFile, mapped: mmap.mmap, root: str, dtype: torch.dtype, key: str, _: int
) -> Tensor:
    member = archive.getinfo(f"{root}/data/{key}")
    if not member.file_size:
        return torch.empty(0, dtype=dtype)
    name, extra = struct.unpack("<2H", mapped[member.header_offset + 26 : member.header_offset + 30])
    start = member.header_offset + 30 + name + extra
    if member.compress_type != zipfile.ZIP_STORED or start % dtype.itemsize:
        return torch.frombuffer(bytearray(archive.read(member)), dtype=dtype)
    return torch.frombuffer(mapped, dtype=dtype, count=member.file_size // dtype.itemsize, offset=start)


def _read_legacy(file: BinaryIO) -> object:
    """Read what torch.save wrote before archives: three headers, the object, and then its storages."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)

    def zeros(dtype: torch.dtype, _: str, count: int) -> Tensor:
        if not 0 <= count <= size:
            raise DualfuseError(f"it has {size:,} bytes, but names a storage of {count:,} numbers")
        return torch.zeros(count, dtype=dtype)

    _, protocol, _ = (_TensorUnpickler(file, zeros).load() for _ in range(3))
    if protocol != LEGACY_PROTOCOL:
        raise DualfuseError(f"its protocol is {protocol}")
    reader = _TensorUnpickler(file, zeros)
    content: object = reader.load()
    for key in _TensorUnpickler(file, zeros).load():
        storage = reader.storages[key]
        if struct.unpack("<q", file.read(8)) != (len(storage),):
            raise DualfuseError(f"its storage {key} does not have the {len(storage)} numbers of its header")
        if len(storage):
            storage.copy_(torch.frombuffer(bytearray(file.read(storage.nbytes)), dtype=storage.dtype))
    return content


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _first(tensor: Tensor, *_: object) -> Tensor:
    return tensor
