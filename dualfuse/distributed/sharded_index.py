"""The index of shards, which torch pickles: read only if it names nothing but what an index is made of."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata

from dualfuse.errors import DualfuseError

_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
PARTS = frozenset(
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
"""Module and name of everything that an index may build, dtypes apart."""


class ShardReader(FileSystemReader):
    """Reads shards; ``DualfuseError`` for an index that would build something else, which then is not built."""

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        """Return the index."""
        with (Path(self.path) / ".metadata").open("rb") as file:
            _Checked(file).load()
        return super().read_metadata(*args, **kwargs)


class _Checked(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> object:
        is_dtype = module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype)
        if not is_dtype and (module_name, global_name) not in PARTS:
            raise DualfuseError(
                f"a checkpoint's index names {module_name}.{global_name}, which no index needs: it was not written by "
                "dualfuse and may be hostile. Nothing of it was run; delete that checkpoint's folder to go on from an "
                "earlier one"
            )
        return super().find_class(module_name, global_name)
