"""Index files of earlier versions: names, metadata and embeddings in one safetensors file."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dualfuse.errors import DualfuseError
from dualfuse.files import check_regular
from dualfuse.search.stores.base import Metadata

logger = logging.getLogger(__name__)
Content = tuple[list[str], Tensor, list[Metadata]]
"""Names, embeddings (N, D) and metadata."""


def read_earlier(paths: Sequence[Path], fingerprint: str) -> Content | None:
    """Return the content of the newest index file that can be used; a damaged one is reported."""
    existing = [(path.stat().st_mtime_ns, path) for path in paths if path.is_file()]
    for _, path in sorted(existing, reverse=True):
        try:
            content = _read(path, fingerprint)
        except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
            logger.warning("%s cannot be used (%s); the images are embedded again", path, error)
        else:
            logger.info("%s: %d embeddings of an earlier version are taken over", path, len(content[0]))
            return content
    return None


def _read(path: Path, fingerprint: str) -> Content:
    check_regular(path)
    tensors = safetensors.torch.load_file(path)
    stored, entries = json.loads(tensors["entries"].numpy().tobytes())
    if stored != fingerprint or len(entries) != len(tensors["embeddings"]):
        raise DualfuseError("it holds the embeddings of another model, or is damaged")
    if "checksum" in tensors and not torch.equal(
        tensors["checksum"], _checksum(tensors["entries"], tensors["embeddings"])
    ):
        raise DualfuseError("its content differs from its checksum: bits have flipped")
    return [name for name, _ in entries], tensors["embeddings"], [metadata for _, metadata in entries]


def _checksum(*tensors: Tensor) -> Tensor:
    digest = sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
