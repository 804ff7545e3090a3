"""The index of a sharded checkpoint, a pickle of torch: read only if it names nothing but the classes of an index."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

from dualfuse.errors import DualfuseError
from dualfuse.files import open_regular
from dualfuse.pickles import StrictUnpickler

_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
CLASSES = frozenset(
    {
        *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
        *((_METADATA, name) for name in ("TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata")),
        (_METADATA, "BytesStorageMetadata"),
        (_FILES, "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("pathlib", "PosixPath"),
        ("pathlib", "WindowsPath"),
    }
)
"""Module and name of all classes of an index; dtypes are allowed besides."""


class ShardReader(FileSystemReader):
    """Reads shards; raises ``DualfuseError`` for an index that names other classes, without building anything of it."""

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        """Return the index, after checking the names in it."""
        with open_regular(Path(self.path) / ".metadata") as file:
            StrictUnpickler(file, _resolve).load()
        return super().read_metadata(*args, **kwargs)


def _resolve(module_name: str, global_name: str) -> object:
    """Return a placeholder for a class of an index; nothing is built of it, since torch reads the file again."""
    is_dtype = module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype)
    if not is_dtype and (module_name, global_name) not in CLASSES:
        raise DualfuseError(
            f"the index of a checkpoint names {module_name}.{global_name}, which no index needs: it was not written by "
            "dualfuse and may be hostile. Nothing of it was run; delete the folder of that checkpoint to resume from "
            "an earlier one"
        )
    return _Placeholder


class _Placeholder:
    """An object of an index, of which nothing is kept."""

    def __new__(cls, *_: object) -> _Placeholder:
        """Ignore the arguments of the class."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Ignore the attributes."""
